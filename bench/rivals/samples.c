#include <stdio.h>
#include <stdlib.h>

#include "rival.h"
#include "samples.h"

void
add_sample(Samples *samples, int64_t us)
{
	if (samples->count == samples->size)
	{
		samples->size = samples->size ? samples->size * 2 : 1024;
		samples->us = realloc(samples->us, samples->size * sizeof(int64_t));
		if (!samples->us)
			die("out of memory");
	}
	samples->us[samples->count++] = us;
}

void
merge_samples(Samples *all, const Samples *some)
{
	for (size_t i = 0; i < some->count; i++)
		add_sample(all, some->us[i]);
}

static int
compare(const void *a, const void *b)
{
	int64_t		x = *(const int64_t *) a;
	int64_t		y = *(const int64_t *) b;

	return (x > y) - (x < y);
}

void
print_quantiles(const char *what, Samples *samples)
{
	size_t		n = samples->count;

	if (n == 0)
		return;
	qsort(samples->us, n, sizeof(int64_t), compare);
	printf("%s_p50 %lld\n", what, (long long) samples->us[n / 2]);
	printf("%s_p99 %lld\n", what, (long long) samples->us[n * 99 / 100]);
	printf("%s_max %lld\n", what, (long long) samples->us[n - 1]);
}
