/*-------------------------------------------------------------------------
 *
 * deadline.c
 *	  A partition's heap of deadlines.
 *
 * A leftist heap threaded through the leases themselves, so that it needs no
 * memory of its own however unevenly locks fall on partitions.  Insertion and
 * removal of any member cost O(log n) in the worst case, never only on
 * average: they run under the partition lock.
 *
 * The key of a member is a lower bound of its deadline.  A renewal to a later
 * deadline does not touch the heap; the sweep that meets the stale key moves
 * the lease to where it belongs.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "engine_parts.h"

static inline int
rank_of(const DlLease *lease)
{
	return lease == NULL ? 0 : lease->rank;
}

/* Put the child with the greater rank left.  Returns the node's rank. */
static inline int
lean_left(DlLease *lease)
{
	if (rank_of(lease->left) < rank_of(lease->right))
	{
		DlLease    *child = lease->left;

		lease->left = lease->right;
		lease->right = child;
	}
	return rank_of(lease->right) + 1;
}

/*
 * Merge two heaps.  The recursion follows right spines only, each at most
 * log2(n) long.  The parent link of the result is left to the caller.
 */
static DlLease *
merge(DlLease *a, DlLease *b)
{
	if (a == NULL)
		return b;
	if (b == NULL)
		return a;
	if (b->key < a->key)
	{
		DlLease    *swap = a;

		a = b;
		b = swap;
	}
	a->right = merge(a->right, b);
	a->right->parent = a;
	a->rank = lean_left(a);
	return a;
}

/* Add the lease under its current deadline.  It must not be in the heap. */
void
dl_deadline_insert(DlPartition *part, DlLease *lease)
{
	Assert(lease->rank == 0);
	lease->left = lease->right = NULL;
	lease->rank = 1;
	lease->key = lease->deadline;
	part->deadlines = merge(part->deadlines, lease);
	part->deadlines->parent = NULL;
}

/* Remove the lease, which must be in the heap of this partition. */
void
dl_deadline_remove(DlPartition *part, DlLease *lease)
{
	DlLease    *parent = lease->parent;
	DlLease    *heir = merge(lease->left, lease->right);

	Assert(lease->rank > 0);
	if (heir != NULL)
		heir->parent = parent;
	if (parent == NULL)
		part->deadlines = heir;
	else if (parent->left == lease)
		parent->left = heir;
	else
		parent->right = heir;
	lease->left = lease->right = lease->parent = NULL;
	lease->rank = 0;

	/* Ranks above may have shrunk; stop where one did not. */
	while (parent != NULL)
	{
		int			rank = lean_left(parent);

		if (rank == parent->rank)
			break;
		parent->rank = rank;
		parent = parent->parent;
	}
}
