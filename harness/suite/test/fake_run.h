/* A stand-in for `kvmark run`. The test program calls itself as PROGRAM run WORKLOAD --option=value ... -o DIR. */
#ifndef FAKE_RUN_H
#define FAKE_RUN_H

/* Writes a run folder in which TTFT is short where a cache layer holds the history. Knows the options --kv-cache,
 * --device,
 * --chunk-size, --output-len, --turns, --num-gpu-blocks-override, --fail (fails) and --wait=SECONDS (waits for a signal
 * before it writes), and ignores others. Returns the exit status. */
int fake_run(int argc, char **argv);

#endif
