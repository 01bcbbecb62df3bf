/* A stand-in for `kvmark run`: the test program itself, called as PROGRAM run WORKLOAD --flag=value ... -o DIR. */
#ifndef FAKE_RUN_H
#define FAKE_RUN_H

/* Understands --kv-cache=none|..., --chunk-size=N, --output-len=N, --fail, --wait=SECONDS, --turns=N; ignores
 * others. Writes a run folder whose TTFT is short where a cache layer holds the history. */
int fake_run(int argc, char **argv);

#endif
