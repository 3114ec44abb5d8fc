#ifndef TAKEOVER_H
#define TAKEOVER_H

#include "rival.h"

/*
 * Have "pairs" holders killed and waited for at once, "rounds" times, and print
 * how late the next one was.  Forks: to be called before there are threads.
 */
extern void measure_takeover(const Rival *rival, const char *target, int pairs,
							 int rounds, int ttl_ms);

#endif
