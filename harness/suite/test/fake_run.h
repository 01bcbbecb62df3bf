/* A replacement of `kvmark run` for tests. The suite starts the test program itself, as PROGRAM run WORKLOAD
 * --option=value
 * ... -o DIR, and its main function calls fake_run. */
#ifndef FAKE_RUN_H
#define FAKE_RUN_H

/* Writes a run folder in which TTFT is short for prompts whose history a cache layer holds. Knows the options
 * --kv-cache,
 * --device, --chunk-size, --output-len, --turns, --num-gpu-blocks-override, --fail (the run fails) and --wait=SECONDS
 * (waits, or until a signal, before it writes). Ignores all other options. Returns the exit status. */
int fake_run(int argc, char **argv);

#endif
