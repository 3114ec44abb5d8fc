# Two-phase commit: what a transaction has acquired or released could not be
# undone once it is prepared, so PREPARE TRANSACTION is refused.  Without
# either it works, also with a guard; see 010_prepared.pl for what follows.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = distlock_node('main', conf => 'max_prepared_transactions = 5');

$node->safe_psql('postgres', 'CREATE TABLE done (what text)');
my $token = $node->safe_psql('postgres', q{SELECT distlock_acquire('held', '1h')});

# The names that are held; the one above must always be under its token.
sub held
{
	return $node->safe_psql(
		'postgres', qq{
SELECT string_agg(name, ' ' ORDER BY name), distlock_check('held', $token)
FROM distlock_leases});
}

sub prepared
{
	return $node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts');
}

sub in_transaction
{
	return "BEGIN; INSERT INTO done VALUES ('it'); $_[0]; PREPARE TRANSACTION 'it'";
}

# ---- Refused ----

my %refused = (
	'acquire' => q{SELECT distlock_acquire('new', '1h')},
	'try_acquire' => q{SELECT distlock_try_acquire('new', '1h')},
	'acquire, scope session' => q{SELECT distlock_acquire('new', scope => 'session')},
	'acquire, scope transaction' => q{SELECT distlock_acquire('new', scope => 'transaction')},
	'acquire in a savepoint' =>
	  q{SAVEPOINT s; SELECT distlock_acquire('new', '1h'); RELEASE SAVEPOINT s},
	'release' => "SELECT distlock_release('held', $token)",
	'force_release' => q{SELECT distlock_force_release('held')},
	'guard and release' =>
	  "SELECT distlock_guard('held', $token), distlock_release('held', $token)",
	'guard by what was acquired' => q{SELECT distlock_guard('new', distlock_acquire('new', '1h'))});

foreach my $test (sort keys %refused)
{
	like(
		sql_error($node, in_transaction($refused{$test})),
		qr/ERROR:  0A000: cannot PREPARE a transaction/,
		"$test: refused");
	is(held(), 'held|t', "$test: undone");
	is(prepared(), 0, "$test: nothing is prepared");
}

# ---- Allowed ----

my %allowed = (
	'renew' => "SELECT distlock_renew('held', $token)",
	'check' => "SELECT distlock_check('held', $token)",
	'guard' => "SELECT distlock_guard('held', $token)",
	'guard undone' =>
	  "SAVEPOINT s; SELECT distlock_guard('held', $token); ROLLBACK TO SAVEPOINT s",
	'try_acquire in vain' => q{SELECT distlock_try_acquire('held')},
	'release of a lost lease' => q{SELECT distlock_release('held', 0)},
	'acquire undone' =>
	  q{SAVEPOINT s; SELECT distlock_acquire('new', '1h'); ROLLBACK TO SAVEPOINT s},
	'release undone' =>
	  "SAVEPOINT s; SELECT distlock_release('held', $token); ROLLBACK TO SAVEPOINT s");

foreach my $test (sort keys %allowed)
{
	is(sql_error($node, in_transaction($allowed{$test})), '', "$test: allowed");
	is(prepared(), 1, "$test: prepared");
	is(held(), 'held|t', "$test: the lease is held when prepared");
	$node->safe_psql('postgres', q{COMMIT PREPARED 'it'});
	is(held(), 'held|t', "$test: the lease is held after COMMIT PREPARED");
	is($node->safe_psql('postgres', 'DELETE FROM done RETURNING what'), 'it',
		"$test: the transaction is committed");
}

$node->stop;
done_testing();
