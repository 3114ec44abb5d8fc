# A lease table that is damaged: nobody is granted anything in that database, an
# error says where the damage is and how to go on, and distlock_discard_damaged()
# makes the database usable without handing out what others may still hold.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use DistlockTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Where things lie: DlImageData, and pages full of slots of 584 bytes.  Slot 1
# is at the end of its page.
my $BLCKSZ = 8192;
my $IMAGE = 560;
my $SLOT = 24 + $IMAGE;
my $SLOTS = 13;
my %FIELD = (format => 4, mode => 6, name_len => 7, token => 8, ttl => 16, database => 32, limit => 40, holder => 48, request_id => 176, name => 304);

# From 18 on initdb turns data checksums on by itself.
my ($major) = (run_command([ 'pg_config', '--version' ]))[0] =~ /(\d+)/;
my @no_checksums = $major >= 18 ? ('--no-data-checksums') : ();

# ---- Damaging ----

sub crc32c
{
	my ($bytes) = @_;
	my $crc = 0xFFFFFFFF;

	foreach my $byte (unpack 'C*', $bytes)
	{
		$crc ^= $byte;
		$crc = ($crc >> 1) ^ ($crc & 1 ? 0x82F63B78 : 0) foreach 1 .. 8;
	}
	return $crc ^ 0xFFFFFFFF;
}

sub image_at
{
	my ($block, $slot) = @_;

	return ($block + 1) * $BLCKSZ - $slot * $SLOT + $SLOT - $IMAGE;
}

# Give fields of an image other values, and the image its checksum.
sub forge
{
	my ($file, $block, $slot, %values) = @_;
	my $at = image_at($block, $slot);
	my $image = substr $$file, $at, $IMAGE;

	while (my ($field, $bytes) = each %values)
	{
		substr($image, $FIELD{$field}, length $bytes) = $bytes;
	}
	substr($image, 0, 4) = pack 'L', crc32c(substr $image, 4);
	substr($$file, $at, $IMAGE) = $image;
	return;
}

# Bytes without any pattern, but the same in every run.
sub garbage
{
	my ($n) = @_;
	my $state = 4711;

	return pack 'C*', map { ($state = ($state * 1103515245 + 12345) & 0x7FFFFFFF) >> 16 & 0xFF } 1 .. $n;
}

# Change the file of the lease table of a database; the server is stopped.
sub damage
{
	my ($path, $how) = @_;
	my $file = slurp_file($path);

	$how->(\$file);
	open my $handle, '>:raw', $path or die "could not open $path: $!";
	print $handle $file;
	close $handle or die "could not write $path: $!";
	return;
}


# ---- The cases: a database each, with leases in three pages ----

my $nleases = 2 * $SLOTS + 1;
my $fifth = $SLOTS + 5;
my @second_page = ($SLOTS + 1 .. 2 * $SLOTS);

my $bad_image = qr/Block 1, slot 5: the image does not match its checksum, or its values are impossible\./;
my $how_to_go_on = qr/\nHINT:  .*distlock_discard_damaged\(\)/;
my $invalid_page = qr/XX001: invalid page in block 1 of relation.*$how_to_go_on.*\nCONTEXT:  while reading the leases/;

# The error that says of the lease table what is wrong.
sub damaged
{
	my ($detail) = @_;

	return qr/XX001: lease table "distlock_lease_table" is damaged\nDETAIL:  $detail$how_to_go_on/;
}

# An image with its checksum, but other values.
sub forged
{
	my (%values) = @_;

	return {
		how => sub { forge($_[0], 1, 5, %values) },
		error => damaged($bad_image),
		lost => [$fifth]
	};
}

# lost: the leases of which nothing is left, by their number in the order of
# slots; discarded: how many slots are given up.
my %cases = (
	byte => {
		how => sub { substr(${ $_[0] }, image_at(1, 5) + $FIELD{name}, 1) ^= "\x01" },
		error => damaged($bad_image),
		lost => [$fifth]
	},
	zeros => {
		how => sub { substr(${ $_[0] }, image_at(1, 5), $IMAGE) = "\0" x $IMAGE },
		error => damaged($bad_image),
		lost => [$fifth]
	},
	torn => {
		how => sub { substr(${ $_[0] }, 1.5 * $BLCKSZ, $BLCKSZ / 2) = "\0" x ($BLCKSZ / 2) },
		error => damaged(qr/Block 1: the page has no proper slots\./),
		lost => \@second_page
	},
	torn_front => {
		how => sub { substr(${ $_[0] }, $BLCKSZ, $BLCKSZ / 2) = "\0" x ($BLCKSZ / 2) },
		error => $invalid_page,
		lost => \@second_page
	},
	zero_page => {
		how => sub { substr(${ $_[0] }, $BLCKSZ, $BLCKSZ) = "\0" x $BLCKSZ },
		error => damaged(qr/Block 1: the page is empty\./),
		lost => \@second_page
	},
	garbage => {
		how => sub { substr(${ $_[0] }, $BLCKSZ, $BLCKSZ) = garbage($BLCKSZ) },
		error => $invalid_page,
		lost => \@second_page
	},
	one_slot_for_all => {
		how => sub {
			substr(${ $_[0] }, $BLCKSZ + 24, 4 * $SLOTS) =
			  pack "L$SLOTS", ($BLCKSZ - $SLOT | 1 << 15 | $SLOT << 17) x $SLOTS;
		},
		error => damaged(qr/Block 1: the page has no proper slots\./),
		lost => \@second_page
	},
	truncated => {
		how => sub { ${ $_[0] } = substr ${ $_[0] }, 0, 1.5 * $BLCKSZ },
		error => damaged(qr/Block 1: the table ends here, but had 3 blocks\./),
		lost => [ @second_page, $nleases ],
		discarded => 2 * $SLOTS
	},
	emptied => {
		how => sub { ${ $_[0] } = '' },
		error => damaged(qr/Block 0: the table ends here, but had 3 blocks\./),
		lost => [ 1 .. $nleases ],
		discarded => 3 * $SLOTS
	},
	twice => {
		how => sub {
			substr(${ $_[0] }, 0, $BLCKSZ) = "\0" x $BLCKSZ;
			forge($_[0], 1, 5, mode => "\x02");
		},
		error => damaged(qr/Block 0: the page is empty\./),
		lost => [ 1 .. $SLOTS, $fifth ]
	},
	no_ttl => forged(ttl => pack('q', 0)),
	endless_ttl => forged(ttl => pack('q', 1 << 62)),
	negative_token => forged(token => pack('q', -1)),
	greatest_token => {
		%{ forged(token => pack('q', 9223372036854775807)) },
		error => damaged(qr/Block 1, slot 5: its token is one that has not been handed out yet\./)
	},
	mode => forged(mode => "\x02"),
	name_len => forged(name_len => "\xFF"),
	no_name => forged(name_len => "\0", name => "\0"),
	holder => forged(holder => 'x' x 128));

sub create_database
{
	my ($node, $dbname, $ttl, $max_ttl) = @_;
	my %tokens;

	$node->safe_psql('postgres', "CREATE DATABASE $dbname");
	$node->safe_psql('postgres', "ALTER DATABASE $dbname SET distlock.default_ttl = '$ttl'");
	$node->safe_psql('postgres', "ALTER DATABASE $dbname SET distlock.max_ttl = '$max_ttl'");
	$node->safe_psql($dbname, 'CREATE EXTENSION distlock');
	%tokens = split /\s+/, $node->safe_psql($dbname,
		"SELECT i || ' ' || distlock_acquire('lease ' || i) FROM generate_series(1, $nleases) i");
	return {
		tokens => \%tokens,
		file => $node->data_dir . '/'
		  . $node->safe_psql($dbname, q{SELECT pg_relation_filepath('distlock_lease_table')})
	};
}

sub create_databases
{
	my ($node, @dbnames) = @_;

	return map { $_ => create_database($node, $_, '1h', '1h') } @dbnames;
}

# Whatever is called fails with this error.
sub all_fail
{
	my ($node, $dbname, $error) = @_;
	my $session = session($node, $dbname);
	my @others;

	foreach my $call (
		q{distlock_acquire('new')},
		q{distlock_acquire('new', durable => false)},
		q{distlock_try_acquire('new', scope => 'session')},
		q{distlock_renew('lease 1', 1)},
		q{distlock_release('lease 1', 1)},
		q{distlock_check('lease 1', 1)},
		q{distlock_guard('lease 1', 1)},
		q{distlock_force_release('lease 1')},
		q{count(*) FROM distlock_leases},
		q{count(*) FROM distlock_waiters})
	{
		$session->send("SELECT $call");
		my $told = $session->error;
		push @others, "$call: $told" unless $told =~ /ERROR:  $error/s;
	}
	is(join("\n", @others), '', "$dbname: whatever is called fails");
	$session->quit;
	return;
}

# The numbers of the leases that are held by their tokens of before.
sub held
{
	my ($node, $dbname, $tokens) = @_;

	return $node->safe_psql($dbname,
		'SELECT i FROM (VALUES ' . join(', ', map { "($_, $tokens->{$_})" } keys %$tokens) . ') v (i, token) '
		  . q{WHERE distlock_check('lease ' || i, token) ORDER BY i});
}

sub all_but
{
	my %lost = map { $_ => 1 } @_;

	return join "\n", grep { !$lost{$_} } 1 .. $nleases;
}

sub is_in_grace
{
	my ($node, $dbname, $test) = @_;

	like(sql_error($node, q{SELECT distlock_acquire('new', wait => '0')}, $dbname),
		qr/ERROR:  55P03: .*\nDETAIL:  Nothing is granted for another/, "$dbname: $test");
	return;
}

sub discard
{
	my ($node, $dbname, $case, $tokens) = @_;
	my $nlost = @{ $case->{lost} };

	is($node->safe_psql($dbname, 'SELECT distlock_discard_damaged()'),
		$case->{discarded} // $nlost, "$dbname: what is damaged is discarded");
	is(held($node, $dbname, $tokens), all_but(@{ $case->{lost} }), "$dbname: what is not comes back");
	is_in_grace($node, $dbname, 'nothing is granted in the grace');
	return;
}

# Damage files while the server is stopped: those of the cases, and others.
sub damage_all
{
	my ($node, $cases, $databases, %others) = @_;

	$node->stop;
	damage($databases->{$_}{file}, $cases->{$_}{how}) foreach keys %$cases;
	damage($databases->{$_}{file}, $others{$_}) foreach keys %others;
	$node->start;
	return;
}

sub discard_all
{
	my ($node, $cases, $databases) = @_;

	foreach my $dbname (sort keys %$cases)
	{
		all_fail($node, $dbname, $cases->{$dbname}{error});
		like(sql_error($node, 'SET ROLE anybody; SELECT distlock_discard_damaged()', $dbname),
			qr/ERROR:  42501: /, "$dbname: not everybody may discard it");
		discard($node, $dbname, $cases->{$dbname}, $databases->{$dbname}{tokens});
	}
	return;
}

sub outlive_a_crash
{
	my ($node, $cases, $databases) = @_;

	crash($node);
	foreach my $dbname (sort keys %$cases)
	{
		is(held($node, $dbname, $databases->{$dbname}{tokens}),
			all_but(@{ $cases->{$dbname}{lost} }), "$dbname: a crash changes nothing");
		is_in_grace($node, $dbname, 'nor does it end the grace');
	}
	return;
}

# ---- Without data checksums ----

my $node = distlock_node('main', init => { extra => \@no_checksums }, conf => "distlock.max_ttl = '14s'\n");

$node->safe_psql('postgres', 'CREATE ROLE anybody');
my %databases = create_databases($node, keys %cases, qw(newer foreign_image extended unlogged));
$node->safe_psql('unlogged', 'ALTER TABLE distlock_lease_table SET UNLOGGED');

# The control row of another version, or none.
my %controls = (
	one_more => 'ALTER TABLE distlock_control ADD later integer DEFAULT 1',
	one_less => 'ALTER TABLE distlock_control DROP unusable_limit',
	another => 'ALTER TABLE distlock_control ALTER unusable_limit TYPE text',
	rewritten => 'ALTER TABLE distlock_control DROP unusable_limit; VACUUM FULL distlock_control',
	no_row => q{ALTER TABLE distlock_control DISABLE TRIGGER USER; DELETE FROM distlock_control});
foreach my $dbname (sort keys %controls)
{
	$node->safe_psql('postgres', "CREATE DATABASE $dbname");
	$node->safe_psql($dbname, 'CREATE EXTENSION distlock');
	$node->safe_psql($dbname, $_) foreach split /; /, $controls{$dbname};
}

my $elsewhere = $node->safe_psql('postgres', q{SET distlock.max_ttl = '1h'; SELECT distlock_acquire('elsewhere', '1h')});

# The leases of this one are shorter than any lease may be, but have to last
# until they have been looked at.
my $short = $databases{short} = create_database($node, 'short', '10s', '14s');
my $started = time;
damage_all(
	$node, \%cases, \%databases,
	short => $cases{byte}{how},
	newer => sub { forge($_[0], 1, 5, format => pack('S', 2)) },
	foreign_image => sub { forge($_[0], 1, 5, database => pack('L', 1)) },
	extended => sub { ${ $_[0] } .= "\0" x $BLCKSZ });

is( $node->safe_psql('short',
		'SELECT count(*), count(name), string_agg(block || \'/\' || slot, \' \') FILTER (WHERE damaged) FROM distlock_images'),
	"$nleases|" . ($nleases - 1) . '|1/5',
	'the view shows the damage and what is not damaged');
discard($node, 'short', $cases{byte}, $short->{tokens});
is( $node->safe_psql('short', qq{
	BEGIN;
	SELECT distlock_guard('lease 2', $short->{tokens}{2});
	SELECT distlock_renew('lease 1', $short->{tokens}{1}) > now();
	SELECT distlock_release('lease 3', $short->{tokens}{3});
	COMMIT}),
	"\nt\nt",
	'leases that came back can be used in the grace');
my $waiter = session($node, 'short');
$waiter->send(q{SELECT distlock_acquire('new')});

discard_all($node, \%cases, \%databases);
is($node->safe_psql('postgres', "SELECT distlock_check('elsewhere', $elsewhere)"),
	't', 'other databases are not disturbed');
like(sql_error($node, 'SELECT distlock_discard_damaged()'),
	qr/ERROR:  55000: the leases of this database are in use/, 'nothing is discarded there');

# A newer format is not damage: what cannot be read is not discarded.
all_fail($node, 'newer',
	qr/0A000: lease table "distlock_lease_table" has images of a newer format\nDETAIL:  Block 1, slot 5: format 2; .*\nHINT:  Install a newer version of distlock\./);
is($node->safe_psql('newer', 'SELECT distlock_discard_damaged()'), 0, 'newer: nothing is discarded');
all_fail($node, 'newer', qr/0A000: /);

# What a database came with from its template is none of its business.
is(held($node, 'foreign_image', $databases{foreign_image}{tokens}), all_but($fifth), 'images of other databases are passed over');
is($node->safe_psql('foreign_image', q{SELECT distlock_acquire('new') > 0; SELECT count(*) FROM distlock_images}),
	"t\n$nleases", 'and overwritten');

# Nor is the page that a crash leaves if it comes while the table is extended.
is(held($node, 'extended', $databases{extended}{tokens}), all_but(), 'an empty page at the end is no damage');

foreach my $dbname (sort keys %controls)
{
	all_fail($node, $dbname,
		$dbname eq 'no_row'
		? qr/XX001: relation "distlock_control" has lost its row\nHINT:  /
		: qr/XX001: relation "distlock_control" does not have the columns of this version of distlock\nHINT:  /);
}

cmp_ok($waiter->result, '>', (sort { $b <=> $a } values %{ $short->{tokens} })[0],
	'once the grace is over, tokens grow');
cmp_ok(time - $started, '>=', 14, 'and not before distlock.max_ttl has passed since the start');
$waiter->quit;

outlive_a_crash($node, \%cases, \%databases);
is(held($node, 'extended', $databases{extended}{tokens}), all_but(), 'nor when it is seen again');
all_fail($node, 'unlogged',
	qr/XX001: leases have been lost with unlogged relation "distlock_lease_table"\nDETAIL:  .*\nHINT:  Set it LOGGED, .*distlock_discard_damaged\(\)/);
$node->safe_psql('unlogged', 'ALTER TABLE distlock_lease_table SET LOGGED');
discard($node, 'unlogged', $cases{emptied}, $databases{unlogged}{tokens});

# The newer version reads them all.
$node->stop;
damage($databases{newer}{file}, sub { forge($_[0], 1, 5, format => pack('S', 1)) });

# ---- Too little memory ----

$node->append_conf('postgresql.conf', 'distlock.max_leases = 16');
$node->start;
all_fail($node, 'newer',
	qr/53400: too many leases\nDETAIL:  $nleases durable leases .* 16 leases .*\nHINT:  Increase "distlock\.max_leases"/);
is($node->safe_psql('postgres', "SELECT distlock_check('elsewhere', $elsewhere)"),
	't', 'too little memory: other databases are not disturbed');
crash($node);
all_fail($node, 'newer', qr/53400: /);
$node->stop;
$node->append_conf('postgresql.conf', 'distlock.max_leases = 1000');
$node->start;
is(held($node, 'newer', $databases{newer}{tokens}), all_but(), 'with enough memory, all leases are back');
unlike(slurp_file($node->logfile), qr/TRAP|PANIC|terminated by signal/, 'no process has crashed');
$node->stop;

# ---- With data checksums ----

# PostgreSQL itself refuses the page.
my %cases_with_checksums = (
	byte => { %{ $cases{byte} }, error => $invalid_page, lost => \@second_page },
	torn => { %{ $cases{torn} }, error => $invalid_page },
	garbage => $cases{garbage},
	zero_page => $cases{zero_page});

$node = distlock_node('checksums', init => { extra => ['--data-checksums'] });
$node->safe_psql('postgres', 'CREATE ROLE anybody');
%databases = create_databases($node, keys %cases_with_checksums);
damage_all($node, \%cases_with_checksums, \%databases);
discard_all($node, \%cases_with_checksums, \%databases);
outlive_a_crash($node, \%cases_with_checksums, \%databases);
$node->stop;
command_ok([ 'pg_checksums', '--check', '-D', $node->data_dir ], 'checksums are right again');

done_testing();
