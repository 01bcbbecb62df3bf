/* Log lines on stderr, "kvmark: warning: text", for programs and the server. Libraries return errors instead. */
#ifndef KM_LOG_H
#define KM_LOG_H

enum km_log_level { KM_LOG_ERROR, KM_LOG_WARN, KM_LOG_INFO, KM_LOG_DEBUG };

void km_log_level(enum km_log_level most); /* lines above this level are dropped; default KM_LOG_INFO */
void km_log(enum km_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
