/* Times in microseconds, and what is said of them. */
#ifndef SAMPLES_H
#define SAMPLES_H

#include <stddef.h>
#include <stdint.h>

typedef struct Samples
{
	int64_t    *us;
	size_t		count;
	size_t		size;
} Samples;

extern void add_sample(Samples *samples, int64_t us);
extern void merge_samples(Samples *all, const Samples *some);

/* Prints p50, p99 and max, a line each; nothing if there are no samples. */
extern void print_quantiles(const char *what, Samples *samples);

#endif
