/* Which backend a name gets, in whatever build and on whatever machine this runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/backend.h"

#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void cpu_is_always_there(void **state)
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

/* auto always works: with a card it is CUDA and nothing fell back, without one it is the CPU; only a build that could
 * have used a card says why it did not. */
static void auto_agrees_with_cuda(void **state)
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

/* Asking must leave the process free to fork its engine: a child sees what the parent saw. */
static void a_child_sees_the_same(void **state)
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
        cmocka_unit_test(cpu_is_always_there),
        cmocka_unit_test(unknown_names_are_refused),
        cmocka_unit_test(auto_agrees_with_cuda),
        cmocka_unit_test(a_child_sees_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
