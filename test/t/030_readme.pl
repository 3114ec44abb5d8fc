# Run the SQL examples of the README and of docs/ as a reader would, those of a
# document in one session, and look for the answers that the text
# around them promises.

use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('readme');
$node->init;
$node->append_conf('postgresql.conf',
	"shared_preload_libraries = 'distlock'");
$node->start;

# Each answer is what one example prints, and what it is to show.
sub run_examples
{
	my ($document, @answers) = @_;
	my $text = slurp_file("$FindBin::RealBin/../../$document");
	my (@examples, $stdout, $stderr);
	my $announced = 0;

	while ($text =~ /^ *```sql( error)?\n(.*?)^ *```$/msg)
	{
		$announced++ if $1;

		# An example of an error is one statement, and names its SQLSTATE.
		push @examples,
		  $1
		  ? "\\set ON_ERROR_STOP off\n$2\\echo :LAST_ERROR_SQLSTATE\n\\set ON_ERROR_STOP on\n"
		  : $2;
	}
	is(scalar(@examples), scalar(@answers), "$document: number of examples");
	my $status = $node->psql(
		'postgres', join("\\echo ----\n", @examples),
		stdout => \$stdout,
		stderr => \$stderr,
		on_error_stop => 1);
	is($status, 0, "$document: every example runs");
	unlike($stderr, qr/WARNING/, "$document: without a warning");
	is(scalar(() = $stderr =~ /ERROR:/g), $announced, "$document: with the errors it announces");

	my @shown = split /^----\n?/m, $stdout;
	while (my ($i, $answer) = each @answers)
	{
		my ($expected, $meaning) = @$answer;

		like($shown[$i], $expected, "$document: $meaning")
		  or diag $stdout;
	}
	return;
}

run_examples(
	'README.md',
	[ qr/^\d{4}-.*\nt\nt$/, 'renewed, good, released' ],
	[ qr/^t\nt$/, 'taken, and still taken after the wait' ],
	[ qr/^t\nt\|t$/, 'a writer waits for readers' ],
	[ qr/^t\nt\nmigration\|session\n?$/, 'transaction scope ended at commit' ],
	[ qr/^t\n0$/, 'an acquire is undone by rollback' ],
	[ qr/f\|f$/, 'a lost lease is neither good nor released' ],
	[ qr/^LK001$/, 'and cannot be renewed' ],
	[ qr/^$/, 'a guarded transaction commits' ],
	[   qr/^report\|\d+\|worker 1\|[^|]+\|00:00:.*\|0$/m,
		'the views show the holder'
	],
	[ qr/^cache-warmup\|f\nt$/, 'a lease that is not durable' ],
	[ qr/^1$/, 'force_release ends one lease' ]);

run_examples(
	'docs/fencing.md',
	[ qr/^$/, 'a guarded transaction commits' ],
	[ qr/^$/, 'a table is protected' ],
	[ qr/^LK002$/, 'and refuses an unguarded write' ],
	[ qr/^t\njob\|job:\{id\}\|t$/, 'and takes a guarded one' ],
	[ qr/^$/, 'a token is kept' ]);
is($node->safe_psql('postgres', 'SELECT balance FROM account'),
	110, 'docs/fencing.md: the guarded write is there');
is($node->safe_psql('postgres', 'SELECT id, state FROM job'),
	'1|new', 'docs/fencing.md: the protected table has its row');
is($node->safe_psql('postgres', 'SELECT value FROM outside'),
	'new', 'docs/fencing.md: the write with the token is there');

run_examples(
	'docs/recipes.md',
	[ qr/^$/, 'a candidate is elected' ],
	[ qr/^t$/, 'the leader renews' ],
	[ qr/^$/, 'a guarded transaction commits' ],
	[ qr/^\d+\|node 1\nt$/, 'an observer learns of the leader, and that nothing changes' ],
	[ qr/^t$/, 'the leader resigns' ],
	[ qr/^t$/, 'the same request gets the same lease' ],
	[ qr/^22023$/, 'and another under its id is refused' ],
	[ qr/^t$/, 'the lease is released' ],
	[ qr/^t\nt$/, 'no more permits than there are' ],
	[ qr/^22023$/, 'and no other limit' ],
	[ qr/^3\nt\nt\nt$/, 'three permits are given back' ],
	[ qr/^\n?t\nt\nt\nf$/, 'several locks are held, and one is released alone' ],
	[ qr/^ExclusiveLock\|t\nt\n0$/, 'an advisory lock goes with its lease' ],
	[ qr/^t\nt$/, 'CALL acquires and watches' ],
	[ qr/^1$/, 'a DO block commits what came before it waits' ]);

$node->stop;
done_testing();
