# Names are bytes: 1 to 255 of them, in whatever encoding the database has.

use strict;
use warnings;

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = distlock_node('encoding');

# The longest name in each encoding, and one character more.
my %names = (
	UTF8 => [ "repeat('é', 127) || 'x'", "repeat('é', 128)" ],
	LATIN1 => [ 'repeat(chr(233), 255)', 'repeat(chr(233), 256)' ],
	SQL_ASCII => [ 'repeat(chr(255), 255)', 'repeat(chr(255), 256)' ],
	EUC_JP => [
		"convert_from(decode(repeat('a4a2', 127) || '41', 'hex'), 'EUC_JP')",
		"convert_from(decode(repeat('a4a2', 128), 'hex'), 'EUC_JP')"
	]);

foreach my $encoding (sort keys %names)
{
	my ($longest, $too_long) = @{ $names{$encoding} };
	my $db = lc "in_$encoding";

	$node->safe_psql('postgres',
		"CREATE DATABASE $db TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'"
	);
	$node->safe_psql($db, 'CREATE EXTENSION distlock');
	local $ENV{PGCLIENTENCODING} = $encoding;
	is( $node->safe_psql($db, qq{
			SELECT distlock_acquire($longest, ttl => '1h') AS token \\gset
			SELECT octet_length(name), name = $longest, distlock_check(name, :token)
			FROM distlock_leases;
			SELECT distlock_release($longest, :token);
			SELECT count(*) FROM distlock_leases}),
		"255|t|t\nt\n0",
		"$encoding: a name of 255 bytes");
	like(
		sql_error($node, "SELECT distlock_acquire($too_long)", $db),
		qr/ERROR:  22023: lock name is too long/,
		"$encoding: a longer one is refused");
}

$node->stop;
done_testing();
