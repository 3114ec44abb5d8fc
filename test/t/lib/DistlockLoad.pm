# Clients that load the server with durable leases, and keep a log of their own
# by which they judge it after a crash.
#
# The log has one entry for each request.  A lease counts as acknowledged when
# the reply with its token has come, and the transaction has committed; as over
# from the moment its release, or the transaction that rolls it back, was sent,
# or when its time to live has passed since before it was asked for.  Nothing
# that the server says later changes that.

package DistlockLoad;

use strict;
use warnings;

use DistlockTest;
use List::Util qw(first max min);
use POSIX qw(WNOHANG);
use PostgreSQL::Test::Utils;
use Time::HiRes qw(CLOCK_MONOTONIC clock_gettime usleep);

# Locks that all clients want, and locks that each has for itself.
my $nhot = 5;
my $nown = 40;

# Leases of this many seconds are never released.
my $short = 2;

# How long the holder of a lock lets the others wait.
my $wait = '100ms';

sub now
{
	return clock_gettime(CLOCK_MONOTONIC);
}

sub new
{
	my ($class, $node, $nclients) = @_;
	my $self = bless {
		node => $node,
		clients => [ map { { number => $_, held => [] } } 1 .. $nclients ],
		log => [],
		by_label => {},
		writes => {},
		nwrites => 0,
		complaints => [],
	}, $class;

	$node->safe_psql('postgres',
		'CREATE TABLE writes (n bigint GENERATED ALWAYS AS IDENTITY, name text, token bigint, mode text, id integer)'
	);
	return $self;
}

sub complain
{
	my ($self, $complaint) = @_;

	push @{ $self->{complaints} }, $complaint;
	return;
}

# What was found wrong since the last call.
sub complaints
{
	my ($self) = @_;

	return join "\n", splice @{ $self->{complaints} };
}

sub describe
{
	my ($lease) = @_;

	return "$lease->{mode} lease of \"$lease->{name}\" by $lease->{label}, token "
	  . ($lease->{token} // 'unknown');
}

# ---- Requests ----

sub start
{
	my ($self, $client, $sql, $done) = @_;

	$client->{done} = $done;
	$client->{session}->send($sql);
	return;
}

# In a transaction, if "end" says how that is to end.
sub acquire
{
	my ($self, $client, %request) = @_;
	my $lease = {
		mode => 'exclusive',
		scope => 'lease',
		label => "client $client->{number} request " . @{ $self->{log} },
		sent => now(),
		longest_told => $request{ttl},
		longest_asked => $request{ttl},
		%request,
	};
	my $sql = "SELECT distlock_try_acquire('$lease->{name}', '$lease->{ttl} s', '$wait', "
	  . "'$lease->{mode}', '$lease->{scope}', '$lease->{label}')";

	$sql = "BEGIN;\n$sql;\n$request{end}" if defined $request{end};
	$lease->{over} = $lease->{sent} if ($request{end} // '') =~ /ROLLBACK/;
	push @{ $self->{log} }, $lease;
	$self->{by_label}{ $lease->{label} } = $lease;
	$self->start(
		$client, $sql,
		sub {
			my ($token, $error) = @_;

			return $self->complain(describe($lease) . ": $error") if $error;
			return if $token eq '';
			$lease->{token} = $token;
			$lease->{told} = now();
			$lease->{good_until} = $lease->{sent} + $lease->{ttl};
			push @{ $client->{held} }, $lease if !defined $lease->{over};
		});
	return;
}

# Complain of what was refused to a lease, unless it may have been over.
sub refused
{
	my ($self, $lease, $what, $good_until) = @_;

	$self->complain("$what refused: " . describe($lease)) if now() < $good_until;
	return;
}

sub renew
{
	my ($self, $client, $lease, $ttl) = @_;
	my $sent = now();
	my $before = $lease->{good_until};

	$lease->{longest_asked} = max($lease->{longest_asked}, $ttl);
	$lease->{good_until} = min($before, $sent + $ttl);
	$self->start(
		$client,
		"SELECT distlock_renew('$lease->{name}', $lease->{token}, '$ttl s')",
		sub {
			my ($reply, $error) = @_;

			return $self->refused($lease, "renewal: $error", $before) if $error;
			$lease->{longest_told} = max($lease->{longest_told}, $ttl);
			$lease->{good_until} = $sent + $ttl;
		});
	return;
}

sub release
{
	my ($self, $client, $lease) = @_;

	$lease->{over} = now();
	$client->{held} = [ grep { $_ != $lease } @{ $client->{held} } ];
	$self->start(
		$client,
		"SELECT distlock_release('$lease->{name}', $lease->{token})",
		sub {
			my ($reply, $error) = @_;

			$self->refused($lease, "release: $error", $lease->{good_until}) if $reply ne 't';
		});
	return;
}

sub release_and_roll_back
{
	my ($self, $client, $lease) = @_;

	$lease->{over} = now();
	$client->{held} = [ grep { $_ != $lease } @{ $client->{held} } ];
	$self->start(
		$client,
		"BEGIN;\nSELECT distlock_release('$lease->{name}', $lease->{token});\nROLLBACK",
		sub {
			my ($reply, $error) = @_;

			return $self->refused($lease, "release: $error", $lease->{good_until})
			  if $reply ne 't';
			$lease->{over} = $lease->{ended_with_session};
			push @{ $client->{held} }, $lease;
		});
	return;
}

sub write_guarded
{
	my ($self, $client, $lease) = @_;
	my $id = ++$self->{nwrites};

	$self->start(
		$client,
		"BEGIN;\nSELECT distlock_guard('$lease->{name}', $lease->{token});\n"
		  . "INSERT INTO writes (name, token, mode, id) VALUES ('$lease->{name}', $lease->{token}, '$lease->{mode}', $id);\nCOMMIT",
		sub {
			my ($reply, $error) = @_;

			return $self->refused($lease, "guard: $error", $lease->{good_until}) if $error;
			$self->{writes}{$id} = 1;
		});
	return;
}

# ---- Load ----

sub any
{
	return $_[ rand @_ ];
}

sub do_anything
{
	my ($self, $client) = @_;
	my $own = "own $client->{number} " . int rand $nown;
	my $hot = 'hot ' . int rand $nhot;
	my $chance = rand;

	# Who is not sure of a lease to be in time gives it up.
	$client->{held} = [ grep { $_->{good_until} > now() + 1 } @{ $client->{held} } ];
	my @held = @{ $client->{held} };
	my $lease = first { $_->{name} =~ /hot/ } @held;

	if ($lease ? $chance < 0.9 : (@held && $chance < 0.5))
	{
		$lease //= any(@held);
		$chance = rand;
		return $self->write_guarded($client, $lease) if $chance < 0.2;
		return $self->release_and_roll_back($client, $lease) if $chance < 0.25;
		return $self->renew($client, $lease, any(20, 60, 120, 7200))
		  if $chance < 0.45 && $lease->{scope} eq 'lease';
		return $self->release($client, $lease) if $lease->{name} =~ /hot/ || @held > 15;
	}

	$chance = rand;
	return $self->start($client, any('CHECKPOINT', 'VACUUM FULL distlock_lease_table'), sub { })
	  if $client->{number} == 1 && $chance < 0.01;
	return $self->acquire($client, name => "short " . int rand $nown, ttl => any(0.01, 0.1, $short))
	  if $chance < 0.1;
	if ($chance < 0.5 && !grep { $_->{name} =~ /hot/ } @held)
	{
		return $self->acquire(
			$client,
			name => $hot,
			ttl => 60,
			mode => any('exclusive', 'shared'),
			scope => any('lease', 'lease', 'session'));
	}

	# A second lease of the same lock would wait for the first.
	if (grep { $_->{name} eq $own } @held)
	{
		return $self->renew($client, any(grep { $_->{name} eq $own } @held), any(30, 90));
	}
	return $self->acquire(
		$client,
		name => $own,
		ttl => any(60, 120, 3600),
		mode => any('exclusive', 'exclusive', 'shared'),
		end => any(undef, undef, undef, 'COMMIT', 'ROLLBACK', 'SAVEPOINT s; ROLLBACK'));
}

# Take in the reply of a client, if it has come.
sub take_reply
{
	my ($self, $client) = @_;
	my $done = $client->{done};

	return 0 unless $done;
	$client->{session}->look;
	return 0 unless $client->{session}->is_done;

	# A warning that the server ends may have come with it.
	my ($reply, $stderr) = $client->{session}->get;
	if ($stderr =~ /server closed the connection|lost/)
	{
		# It has not come, though psql goes on.
		$client->{session}->kill_client;
		return 0;
	}
	$client->{done} = undef;
	$done->($reply, $stderr =~ /ERROR: / ? $stderr : '');
	return 1;
}

sub open_sessions
{
	my ($self) = @_;

	$_->{session} = session($self->{node}) foreach @{ $self->{clients} };
	return;
}

# Take in what has come, and give those something to do who have nothing.
# Returns whether anything had come.
sub step
{
	my ($self) = @_;
	my $news = 0;

	foreach my $client (@{ $self->{clients} })
	{
		$news = 1 if $self->take_reply($client);
		$self->do_anything($client) unless $client->{done};
	}
	return $news;
}

# Keep the server busy for so many seconds, and leave it in the middle of that.
# With "freeze", all its processes are then stopped wherever they are.
sub run
{
	my ($self, $seconds, $freeze) = @_;

	$self->open_sessions;

	# Our own steps shall not choose the moment.
	my $timer = fork // die "could not fork: $!";
	if ($timer == 0)
	{
		usleep($seconds * 1_000_000);
		freeze_server($self->{node}) if $freeze;
		POSIX::_exit(0);
	}
	until (waitpid $timer, WNOHANG)
	{
		$self->step || usleep(200);
	}
	return;
}

# The server is about to be ended: from now on nobody relies on leases that end
# with the sessions.
sub strike
{
	my ($self) = @_;
	my $when = now();

	foreach my $lease (grep { $_->{scope} eq 'session' } @{ $self->{log} })
	{
		$lease->{over} //= $when;
		$lease->{ended_with_session} //= $when;
	}
	return;
}

# The sessions end with the server: take in what had been replied by then.
sub end_sessions
{
	my ($self) = @_;

	foreach my $client (@{ $self->{clients} })
	{
		my $give_up = now() + $PostgreSQL::Test::Utils::timeout_default;

		while ($client->{done} && $client->{session}->look)
		{
			$self->take_reply($client);
			die 'a session does not end' if now() > $give_up;
			usleep(200);
		}
		$self->take_reply($client);
		$client->{session}->kill_client;
		$client->{done} = undef;
		$client->{held} = [ grep { $_->{scope} eq 'lease' } @{ $client->{held} } ];
	}
	return;
}

# ---- Judgement after a restart ----

sub conflict
{
	my ($a, $b) = @_;

	return $a->{name} eq $b->{name} && ($a->{mode} eq 'exclusive' || $b->{mode} eq 'exclusive');
}

# Judge what the server has brought back after it was stopped at "since" (on
# the wall clock), before anything else is done to it.  Returns how many leases
# it had to bring back, and how many it did of which nobody had been told.
sub judge_recovery
{
	my ($self, $since) = @_;
	my %found;

	my $rows = $self->{node}->safe_psql(
		'postgres', qq{
SELECT holder, name, token, mode, extract(epoch FROM ttl), remaining <= ttl,
	expires_at - greatest(to_timestamp($since), pg_postmaster_start_time()) >= ttl - interval '1 ms',
	scope || ' ' || durable || ' ' || (pid IS NULL), distlock_check(name, token)
FROM distlock_leases});
	foreach my $row (split /\n/, $rows)
	{
		my %lease;
		@lease{qw(label name token mode ttl not_more not_less kind good)} = split /\|/, $row;
		my $logged = $self->{by_label}{ $lease{label} };
		my $what = 'brought back, ' . describe(\%lease);

		$found{ $lease{label} } = \%lease;
		if (!$logged || $logged->{scope} ne 'lease')
		{
			$self->complain("$what: never asked for");
			next;
		}
		$self->complain("$what: asked for as " . describe($logged))
		  if $lease{name} ne $logged->{name} || $lease{mode} ne $logged->{mode};
		$self->complain("$what: has another token than " . describe($logged))
		  if ($logged->{token} // $lease{token}) != $lease{token};
		$logged->{token} = $lease{token};
		$self->complain("$what: has a time to live of $lease{ttl} s, "
			  . "asked for $logged->{longest_asked} s, told of $logged->{longest_told} s")
		  if $lease{ttl} > $logged->{longest_asked}
		  || ($logged->{told} && $lease{ttl} < $logged->{longest_told});
		$self->complain("$what: not for its full time to live, from the start")
		  if $lease{not_more} ne 't' || $lease{not_less} ne 't';
		# A short one may expire between the look and the check.
		$self->complain("$what: is $lease{kind}, good: $lease{good}")
		  if $lease{kind} ne 'lease true true' || ($lease{good} ne 't' && $lease{ttl} > $short);
	}
	my $at = now();

	# An old token must not come back to life beside, or after, a newer one.
	my @found = sort { $a->{token} <=> $b->{token} } values %found;
	my %later;
	push @{ $later{ $_->{name} } }, $_
	  foreach grep { defined $_->{told} || $found{ $_->{label} } } @{ $self->{log} };
	foreach my $lease (@found)
	{
		my $newer =
		  first { $_->{token} > $lease->{token} && conflict($lease, $_) } @{ $later{ $lease->{name} } };

		$self->complain('brought back, ' . describe($lease) . ': there was ' . describe($newer))
		  if $newer;
	}

	my @due = grep { defined $_->{told} && !defined $_->{over} && $_->{good_until} > $at }
	  @{ $self->{log} };
	foreach my $lease (@due)
	{
		$self->complain('forgotten: ' . describe($lease)) unless $found{ $lease->{label} };
	}
	if (my $names = join ', ', map { "('$_->{name}')" } @due)
	{
		$self->complain("granted to others: $_")
		  foreach split /\n/, $self->{node}->safe_psql('postgres',
			"SELECT n FROM (VALUES $names) v (n) WHERE distlock_try_acquire(n, scope => 'transaction') IS NOT NULL"
		  );
	}

	# What nobody knows of, or counts on, shall not be in the way of the rest.
	my %is_due = map { $_->{label} => 1 } @due;
	if (my $others = join ', ',
		map { "('$_->{name}', $_->{token})" } grep { !$is_due{ $_->{label} } && $_->{ttl} > $short } @found)
	{
		$self->{node}->safe_psql('postgres',
			"SELECT distlock_release(n, t) FROM (VALUES $others) v (n, t)");
	}
	return (scalar @due, scalar grep { !defined($self->{by_label}{$_}{told}) } keys %found);
}

# ---- Judgement of the whole log ----

# No token comes twice, and a later grant has a greater one.
sub judge_tokens
{
	my ($self) = @_;
	my @leases = grep { defined $_->{token} } @{ $self->{log} };
	my @told = sort { $a->{told} <=> $b->{told} } grep { defined $_->{told} } @leases;
	my $greatest = 0;
	my %seen;

	foreach my $lease (sort { $a->{sent} <=> $b->{sent} } @leases)
	{
		$greatest = max($greatest, (shift @told)->{token})
		  while @told && $told[0]->{told} < $lease->{sent};
		$self->complain("not above token $greatest, told of before: " . describe($lease))
		  if $lease->{token} <= $greatest;
		$self->complain('the same token as for ' . $seen{ $lease->{token} } . ': ' . describe($lease))
		  if $seen{ $lease->{token} };
		$seen{ $lease->{token} } = $lease->{label};
	}
	return scalar @leases;
}

# Nobody is told of a lease while others may rely on one that excludes it.
sub judge_exclusion
{
	my ($self) = @_;
	my %until;

	foreach my $lease (sort { $a->{token} <=> $b->{token} }
		grep { defined $_->{told} } @{ $self->{log} })
	{
		my $until = $until{ $lease->{name} } //= { exclusive => 0, shared => 0 };
		my $others = $lease->{mode} eq 'shared' ? $until->{exclusive} : max(values %$until);

		$self->complain('while others relied on theirs: ' . describe($lease))
		  if $lease->{told} < $others;
		$until->{ $lease->{mode} } = max($until->{ $lease->{mode} },
			min($lease->{good_until}, $lease->{over} // $lease->{good_until}));
	}
	return;
}

# What was committed under a guard is there, in the order of the tokens.
sub judge_writes
{
	my ($self) = @_;
	my %found =
	  map { $_ => 1 } split /\n/, $self->{node}->safe_psql('postgres', 'SELECT id FROM writes');

	$self->complain("write $_ is lost") foreach grep { !$found{$_} } keys %{ $self->{writes} };
	$self->complain("write $_ came after one of a later lease")
	  foreach split /\n/, $self->{node}->safe_psql('postgres', q{
SELECT id
FROM (SELECT id, token, mode, max(token) OVER w AS latest,
		max(token) FILTER (WHERE mode = 'exclusive') OVER w AS latest_exclusive
	  FROM writes WINDOW w AS (PARTITION BY name ORDER BY n)) ordered
WHERE token < CASE mode WHEN 'exclusive' THEN latest ELSE latest_exclusive END});
	return scalar keys %{ $self->{writes} };
}

1;
