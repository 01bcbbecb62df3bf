/* The registry of backends: which backend a name picks, in builds with and without CUDA, with and without a GPU. */
#include "base/test/test.h"

#include "engine/backend.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void the_cpu_backend_is_always_usable(void **state)
{
    (void)state;
    const struct backend *b = NULL;
    struct km_err err = {0};
    assert_int_equal(backend_pick("cpu", &b, &err), 0);
    assert_ptr_equal(b, &be_cpu);
    assert_false(backend_fell_back("cpu", b, &err));
}

static void unknown_names_are_refused(void **state)
{
    (void)state;
    const struct backend *b = NULL;
    struct km_err err = {0};
    assert_int_equal(backend_pick("gpu", &b, &err), KM_EINVAL);
    assert_non_null(strstr(err.msg, "\"gpu\""));
}

/* "auto" always picks a backend: CUDA with a usable GPU, else the CPU. Only a build with CUDA reports that it fell back
 * to the CPU, and why. */
static void auto_prefers_cuda(void **state)
{
    (void)state;
    const struct backend *any = NULL, *cuda = NULL;
    struct km_err err = {0}, why = {0};
    assert_int_equal(backend_pick("auto", &any, &err), 0);
    int rc = backend_pick("cuda", &cuda, &err);
    bool fell = backend_fell_back("auto", any, &why);
    if (!rc) {
        assert_string_equal(any->name, "cuda");
        assert_ptr_equal(any, cuda);
        assert_false(fell);
        return;
    }
    assert_int_equal(rc, KM_EDEVICE);
    assert_ptr_equal(any, &be_cpu);
    assert_non_null(strstr(err.msg, "cpu"));
    if (fell)
        assert_string_equal(why.msg, err.msg);
    else
        assert_non_null(strstr(err.msg, "this build has no CUDA backend"));
}

/* A plan under a stated memory limit needs no GPU. Only a build without CUDA refuses it. */
static void plans_need_no_gpu(void **state)
{
    (void)state;
    const struct backend *b = NULL, *real = NULL;
    struct km_err err = {0}, why = {0};
    struct plan p;
    struct mdl *m;
    struct be_opts o = {.dtype = KM_BF16,
                        .block_size = 16,
                        .memory_limit = (int64_t)24 << 30,
                        .max_tokens = 2048,
                        .max_reqs = 256,
                        .max_model_len = 40960};
    assert_int_equal(backend_pick_plan("cpu", &b, &err), 0);
    assert_ptr_equal(b, &be_cpu);
    assert_int_equal(backend_pick_plan("gpu", &b, &err), KM_EINVAL);
    int no_gpu = backend_pick("cuda", &real, &why);
    if (backend_pick_plan("cuda", &b, &err)) {
        assert_string_equal(err.msg, why.msg);
        assert_non_null(strstr(err.msg, "this build has no CUDA backend"));
        return;
    }
    assert_string_equal(b->name, "cuda");
    if (!no_gpu) /* engine_check compares plans with a real GPU */
        return;
    assert_int_equal(mdl_open(&m, "qwen3-8b", true, 0, &err), 0);
    if (b->plan(&p, &o, m, &err))
        fail_msg("%s", err.msg);
    int64_t page = (int64_t)p.geom.page_bytes, total = plan_total(&p, KM_MEM_DEVICE);
    assert_int_equal(page, 36 * 2 * 8 * 16 * 128 * 2);
    assert_int_equal(plan_sum(&p, PLAN_KV, KM_MEM_DEVICE), (p.geom.n_pages + 1) * page);
    assert_true(total <= o.memory_limit && total > o.memory_limit - page);
    int64_t padding = plan_sum(&p, PLAN_WEIGHTS, KM_MEM_DEVICE) - 2 * mdl_params(m);
    assert_in_range(padding, 0, 256 * 9 * 36);
    o.n_pages = p.geom.n_pages;
    assert_int_equal(b->plan(&p, &o, m, &err), 0);
    o.n_pages++;
    assert_int_equal(b->plan(&p, &o, m, &err), KM_ELIMIT);
    assert_int_equal(plan_sum(&p, PLAN_KV, KM_MEM_DEVICE), 0);
    o.memory_limit = 0;
    assert_int_equal(b->plan(&p, &o, m, &err), KM_EDEVICE);
    assert_non_null(strstr(err.msg, "--gpu-memory-limit"));
    mdl_free(m);
}

/* A probe must not prevent a child process from using the device: parent and child pick the same backend. */
static void a_child_process_picks_the_same_backend(void **state)
{
    (void)state;
    const struct backend *b = NULL;
    struct km_err err = {0};
    assert_int_equal(backend_pick("auto", &b, &err), 0);
    pid_t pid = fork();
    if (pid == 0) {
        const struct backend *mine = NULL;
        _exit(backend_pick("auto", &mine, &err) || mine != b);
    }
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cpu_backend_is_always_usable),
        cmocka_unit_test(unknown_names_are_refused),
        cmocka_unit_test(auto_prefers_cuda),
        cmocka_unit_test(plans_need_no_gpu),
        cmocka_unit_test(a_child_process_picks_the_same_backend),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
