# The history of a fault test: what was called and answered, what was hurt, and
# which leases their holders believed in.
#
# Reads, in the directory,
#
#	client-N.log	calls and answers of a client, see session.c
#	faults.log		TIME begin ID KIND [TARGET], TIME end ID
#
# with tabs between the fields.
#
# All times are microseconds of one monotonic clock.  A call reached the server
# after it was noted, and was done before its answer was noted.  A lease was
# granted before its token was noted; its holder gives it up when the time to
# live has passed since the acquire, or the last renewal, was noted, or when a
# release is noted.  One of session or transaction scope may have ended at any
# time after the last call of that connection that was answered was noted; the
# latter also gives way when a call is noted that fails, or ends the transaction
# or savepoint.

package History;

use strict;
use warnings;

use Exporter qw(import);
use List::Util qw(any first max min);

our @EXPORT = qw(
  $forever $second
  $promotion $crash $lossy $cut $standby $stopped $server $clock
  %workload @calls @grants @faults
  read_history lines describe ok refused conflict fault in_grace may_be_lost may_be_gone);

our $forever = 9e18;
our $second = 1_000_000;
my $longest_ttl = 3 * $second;

# ---- Kinds of faults ----

# The memory of the server is gone: it has crashed, or another takes its place.
our $promotion = qr/^(?:promote|patroni)-/;
our $crash = qr/^(?:kill-(?:backend|worker|postmaster)|immediate-stop)$|$promotion/;

# Nobody is granted anything for so long afterwards, at the least: a TTL is
# rounded up by a quarter.
my $grace = 5 * $second;
my $grace_of_promotion = 7 * $second;

# What was acknowledged may be gone, too, and no lease from before is of use.  The
# standby may be so much behind, and more if it was away.
our $lossy = qr/^promote-async$/;
my $unsynced = 5 * $second;

# There is a leader that writes when it is over, but the cluster may take so long to
# take notice of what it was: ttl, loop_wait and retry_timeout.
my $detected_late = qr/^patroni-/;
my $detection = 10 * $second;

# After a crash, what has to be on the standby waits until that has connected again.
my $with_standby = qr/standby|$promotion/;
my $reconnection = 3 * $second;

# Clients are cut off, which the server may not know.
our $cut = qr/^(?:cut|reset)-client$/;

# What has to be on the standby has to wait, if any has.
our $standby = qr/^(?:cut|stop|kill)-standby$/;
my $asynchronous = qr/^(?:servers|promote)-async$/;

# Who is stopped may hold up others.  A worker that was asleep does not.
our $stopped = qr/^stop-(?:backend|busy-worker)$/;

# Anything that explains why the server did not answer, or somebody else.
our $server = qr/$crash|$cut|$standby|$stopped/;

# A step of the wall clock, which is no excuse for anything of ours.
our $clock = qr/^clock$/;

# ---- Reading ----

our %workload;                  # by client
our @calls;
our @grants;
our @faults;
my %of_kinds;                   # the same, by a pattern of kinds, in order
my $dir;

# The lines of a file, split at tabs.  The last may have been cut off.
sub lines
{
	my ($name) = @_;

	open my $file, '<', "$dir/$name" or return;
	return map { chomp; [ split /\t/ ] } grep { /\n\z/ } <$file>;
}

sub arguments
{
	return { map { /(\w+)=(.*)/ ? ($1, $2) : () } @_ };
}

sub read_client
{
	my ($client) = @_;
	my %open;
	my $connection = 0;
	my $lock_timeout;

	foreach my $line (lines("client-$client.log"))
	{
		my ($time, $event, $id, @rest) = @$line;
		my $args = arguments(@rest);

		if ($event eq 'begin')
		{
			$workload{$client} = $args->{workload};
		}
		elsif ($event eq 'connect')
		{
			$connection++;
			$lock_timeout = $args->{lock_timeout};
		}
		elsif ($event eq 'call')
		{
			my $call = {
				client => $client,
				id => $id,
				what => $args->{what},
				args => $args,
				names => [ split /,/, $args->{names} // '' ],
				token => $args->{token},
				sent => $time,
				connection => "$client/$connection",
				lock_timeout => $lock_timeout,
			};
			push @calls, $open{$id} = $call;
			$longest_ttl = max($longest_ttl, ($args->{ttl} // 0) * 1000);
		}
		elsif ($event eq 'lost')
		{
			$open{$id}{lost} = $time;
		}
		elsif ($event eq 'answer')
		{
			my $call = $open{$id};

			$call->{answered} = $time;
			$call->{answer} = $args;
			$call->{token} = $args->{token} if $call->{what} eq 'acquire';
		}
	}
	return;
}

sub read_faults
{
	my %open;

	foreach my $line (lines('faults.log'))
	{
		my ($time, $event, $id, $kind, $target) = @$line;

		if ($event eq 'begin')
		{
			push @faults,
			  $open{$id} = { from => $time, to => $forever, kind => $kind, target => $target // '' };
		}
		else
		{
			$open{$id}{to} = $time;
			$open{$id}{to} += $detection if $open{$id}{kind} =~ $detected_late;
		}
	}
	if (any { $_->{kind} =~ $with_standby } @faults)
	{
		$_->{to} += $reconnection foreach grep { $_->{kind} =~ $crash } @faults;
	}
	$_->{unsynced} = unsynced_since($_) foreach grep { $_->{kind} =~ $lossy } @faults;
	if (any { $_->{kind} =~ $asynchronous } @faults)
	{
		$_->{harmless} = 1 foreach grep { $_->{kind} =~ $standby } @faults;
	}
	return;
}

# From when on may what was acknowledged be missing on the standby that took over?
# It does not catch up between one time away and the next.
sub unsynced_since
{
	my ($fault) = @_;
	my $since = $fault->{from};

	foreach my $away (sort { $b->{from} <=> $a->{from} } grep { $_->{kind} =~ $standby } @faults)
	{
		$since = min($since, $away->{from}) if $away->{to} + $reconnection >= $since;
	}
	return $since - $unsynced;
}

# Was there a fault of these kinds, to this target if one is given, at any time
# from .. to?
sub fault
{
	my ($kinds, $from, $to, $target) = @_;

	$of_kinds{$kinds} //= [ sort { $a->{from} <=> $b->{from} } grep { $_->{kind} =~ $kinds && !$_->{harmless} } @faults ];
	foreach my $fault (@{ $of_kinds{$kinds} })
	{
		last if $fault->{from} > $to;
		return 1 if $fault->{to} >= $from && (!defined $target || $fault->{target} eq $target);
	}
	return 0;
}

# Was the server down, or granted nothing because it had been, at any time from ..
# to?
sub in_grace
{
	my ($from, $to) = @_;

	return fault($crash, $from - $grace, $to) || fault($promotion, $from - max($grace_of_promotion, 1.25 * $longest_ttl + 2 * $second), $to);
}

# When has the server noticed that nobody waits for an answer any more?
sub end_unanswered
{
	my %killed = map { $_->{target} => $_->{to} } grep { $_->{kind} eq 'kill-client' } @faults;
	my @delays = grep { $_->{kind} =~ /$cut|$stopped|$standby/ } @faults;

	foreach my $call (grep { !defined $_->{answered} } @calls)
	{
		my $lost = $call->{lost} // $killed{ $call->{client} } // next;

		$call->{gone} = $second + max($lost,
			map { $_->{to} } grep { $_->{from} <= $lost && $_->{to} >= $call->{sent} } @delays);
	}
	return;
}

# ---- Calls ----

sub describe
{
	my ($call) = @_;
	my $text = "client $call->{client} call $call->{id} ($call->{what}";

	$text .= " $call->{args}{names}" if defined $call->{args}{names};
	$text .= " token $call->{token}" if defined $call->{token};
	return "$text, sent $call->{sent}, answered " . ($call->{answered} // 'never') . ')';
}

sub ok
{
	my ($call) = @_;

	return defined $call->{answer}{value} && $call->{answer}{value} !~ /^(?:f|ROLLBACK)$/;
}

# The lease is not there: LK001 or false.  A COMMIT after an error also says
# ROLLBACK, but that error has been answered already.
sub refused
{
	my ($call) = @_;

	return defined $call->{answered}
	  && (($call->{answer}{error} // '') eq 'LK001' || ($call->{answer}{value} // '') eq 'f');
}

# Has a promotion perhaps made this undone?
sub may_be_lost
{
	my ($call) = @_;

	return any { $_->{kind} =~ $lossy && $_->{unsynced} <= $call->{answered} && $_->{to} >= $call->{sent} }
	@faults;
}

# ---- Leases as their holders believe in them ----

sub conflict
{
	my ($a, $b) = @_;

	return 0 if $a->{args}{limit} || $b->{args}{limit};
	return $a->{args}{mode} eq 'exclusive' || $b->{args}{mode} eq 'exclusive';
}

# Has a crash or a promotion perhaps ended it, until then?
sub may_be_gone
{
	my ($lease, $until) = @_;

	return fault($lease->{args}{durable} eq 'true' ? $lossy : $crash, $lease->{first_sent}, $until);
}

# Until when does the server owe it to the holder to accept this call?
sub reliable_until
{
	my ($lease, $call) = @_;

	return 0 if $lease->{released};
	return 0 if $lease->{args}{scope} ne 'lease' && $lease->{connection} ne $call->{connection};
	return 0 if may_be_gone($lease, $call->{answered});
	return min(
		$lease->{until}, $lease->{forced},
		$call->{what} eq 'renew' ? $call->{sent} + $call->{args}{ttl} * 1000 : $forever);
}

# What a call does to the leases of transaction scope of its connection.
sub follow_transaction
{
	my ($open, $call) = @_;
	my $what = $call->{what};
	my $ended =
	    $what =~ /^(?:begin|end)$/ ? 0
	  : $what eq 'rollback-to' ? 1
	  : $call->{answer}{error} ? $open->{level}
	  : undef;

	if (defined $ended)
	{
		foreach my $lease (grep { $_->{level} >= $ended } @{ $open->{leases} })
		{
			$lease->{released} = $call->{sent};
			$lease->{over} = $call->{answered} if defined $call->{answered};
		}
		$open->{leases} = [ grep { $_->{level} < $ended } @{ $open->{leases} } ];
	}
	$open->{level} = 0 if $what =~ /^(?:begin|end)$/;
	return unless defined $call->{answered} && !$call->{answer}{error};
	$open->{level} = 1 if $what eq 'savepoint';
	if ($what eq 'release-savepoint')
	{
		$_->{level} = $open->{level} = 0 foreach @{ $open->{leases} };
		$open->{level} = 0;
	}
	return;
}

# Go through the calls of each client and make out its leases: from when on,
# until when.  Returns the calls that refused one that its holder could rely on,
# and those that told a token that had been told for another request.
sub make_grants
{
	my %alive;                  # connection -> last answered call was sent
	my %requests;
	my %mine;
	my %forced;
	my %open;                   # connection -> its transaction
	my @lost;
	my @repeated;

	foreach my $call (@calls)
	{
		$alive{ $call->{connection} } = $call->{sent}
		  if defined $call->{answered} && $call->{what} !~ /^file/;
		push @{ $forced{ $call->{names}[0] } }, $call if $call->{what} eq 'force';
	}
	foreach my $call (@calls)
	{
		my $args = $call->{args};
		my $lease = $mine{"$call->{client} " . ($call->{token} // '')};
		my $open = $open{ $call->{connection} } //= { level => 0, leases => [] };

		follow_transaction($open, $call);
		if ($call->{what} eq 'acquire')
		{
			# The same request may have been granted when it was first sent.
			my $first_sent = $call->{sent};
			if ($args->{request} ne '')
			{
				my $request = $requests{ $args->{request} };
				$call->{again} = 1 if $request;
				$first_sent = $request->{sent} if $request;
				$requests{ $args->{request} } //= $call;
			}
			next unless defined $call->{token};
			$call->{until} = $args->{ttl} ? $call->{sent} + $args->{ttl} * 1000 : $forever;
			if ($lease)
			{
				push @repeated, $call
				  if $args->{request} eq '' || $lease->{args}{request} ne $args->{request};
				$lease->{until} = $call->{until};
				$lease->{asked} = $call->{answered};
				next;
			}
			push @grants, $call;
			$mine{"$call->{client} $call->{token}"} = $call;
			$call->{first_sent} = $first_sent;
			$call->{told} = $call->{asked} = $call->{answered};
			$call->{level} = $open->{level};
			push @{ $open->{leases} }, $call if $args->{scope} eq 'transaction';
			$call->{forced} = min $forever,
			  map { $_->{sent} } grep { ($_->{answered} // $_->{gone} // $forever) >= $first_sent }
			  map { @{ $forced{$_} // [] } } @{ $call->{names} };
			next;
		}
		next unless $lease;
		$call->{lease} = $lease;
		push @lost, $call
		  if refused($call) && $call->{answered} < reliable_until($lease, $call);
		if ($call->{what} eq 'renew')
		{
			my $until = $call->{sent} + $args->{ttl} * 1000;

			$lease->{until} = ok($call) ? $until : min($until, $lease->{until});
			# The server counts from when it has answered.
			$lease->{asked} = $call->{answered} if ok($call);
			$lease->{args}{ttl} = $args->{ttl} if ok($call);
			$lease->{unsure} = 1 unless ok($call) || refused($call);
		}
		$lease->{released} //= $call->{sent} if $call->{what} =~ /^release(?:-at-commit)?$/;
		$lease->{over} //= $call->{answered} if $call->{what} eq 'release' && ok($call);
	}
	foreach my $lease (@grants)
	{
		$lease->{end} = min($lease->{until}, $lease->{forced}, $lease->{released} // $forever,
			$lease->{args}{scope} eq 'lease' ? $forever : $alive{ $lease->{connection} });
	}
	return (\@lost, \@repeated);
}

sub read_history
{
	($dir, my @clients) = @_;

	read_client($_) foreach @clients;
	read_faults();
	end_unanswered();
	return make_grants();
}

1;
