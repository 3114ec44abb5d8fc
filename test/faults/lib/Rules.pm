# What has to be true of a history, see History.pm.  Each rule notes what violates
# it in @violations, and what it has counted in %n.

package Rules;

use strict;
use warnings;

use Exporter qw(import);
use List::Util qw(any first max min uniq);

use History;

our @EXPORT = qw(@violations %n @late @alone @disturbed judge);

our @violations;
our %n;
our @late;                      # takeovers, by ms
our @alone;                     # of these, of expired leases while the worker was stopped
our @disturbed;                 # takeovers whose being late another fault explains

my $bound;                      # ms
my $typical;
my %by_name;                    # grants
my %acquires;                   # calls, by name
my %settled;                    # writer and op -> calls that finish that prepared transaction
my %requests;                   # request -> calls

# What a careful client has to be ready for.
my %expected = map { $_ => 1 } qw(55P03 57014 57P01 57P02 57P03 25P02 25P03);

# Likewise, where another server may take over: one that is a standby as yet.
my %expected_in_promotion = ('25006' => 1);

# Likewise, for these calls: no such prepared transaction, or a busy one; a
# refusal that is asked for.
my %expected_of = (settle => { 42704 => 1, 55000 => 1 }, unguarded => { LK002 => 1 });

sub violation
{
	my ($rule, $what) = @_;

	push @violations, "violation $rule: $what";
	return;
}

# ---- Exclusion and tokens ----

# No two holders that exclude each other, never more than the limit.
sub check_exclusion
{
	my %live;

	foreach my $lease (sort { $a->{told} <=> $b->{told} } @grants)
	{
		foreach my $name (@{ $lease->{names} })
		{
			my @live = grep { $_->{end} > $lease->{told} } @{ $live{$name} };
			my $other = first { conflict($_, $lease) } @live;

			$live{$name} = \@live;
			next if $lease->{end} <= $lease->{told};
			violation('exclusion', "$name: " . describe($lease) . ' while held by ' . describe($other))
			  if $other;
			violation('permits', "$name: " . describe($lease) . ' beside ' . @live . ' others')
			  if $lease->{args}{limit} && @live >= $lease->{args}{limit};
			push @live, $lease;
		}
	}
	return;
}

# A token is greater than all that were told before it was asked for.
sub check_tokens
{
	my @told = sort { $a->{told} <=> $b->{told} } @grants;
	my $greatest;
	my %seen;

	foreach my $lease (sort { $a->{first_sent} <=> $b->{first_sent} } @grants)
	{
		while (@told && $told[0]{told} < $lease->{first_sent})
		{
			my $told = shift @told;
			$greatest = $told if !$greatest || $told->{token} > $greatest->{token};
		}
		violation('tokens', describe($lease) . ' after ' . describe($greatest))
		  if $greatest && $lease->{token} <= $greatest->{token};
		violation('tokens', 'the same for ' . describe($lease) . ' and ' . describe($seen{ $lease->{token} }))
		  if $seen{ $lease->{token} };
		$seen{ $lease->{token} } = $lease;
	}
	return;
}

# ---- The fence ----

# The first call that may have finished a prepared transaction, noted.
sub first_settled
{
	my ($prepare) = @_;
	my $calls = $settled{"$prepare->{client} $prepare->{args}{op}"} // [];

	return min $forever, map { $_->{sent} } grep { !$_->{answer}{error} } @$calls;
}

# Was this transaction prepared, as far as we know?
sub was_prepared
{
	my ($prepare, $row) = @_;

	return 1 if $row || (ok($prepare) && !may_be_lost($prepare));
	return any { ok($_) } @{ $settled{"$prepare->{client} $prepare->{args}{op}"} // [] };
}

# Nothing is accepted from a holder that is sent after its successor was told.  A
# transaction that it has prepared is finished before that.
sub check_stale
{
	my ($rows) = @_;
	my %successor;              # name, token -> the first told under a greater one

	while (my ($name, $grants) = each %by_name)
	{
		my %first;

		foreach my $lease (sort { $b->{token} <=> $a->{token} } @$grants)
		{
			my $first = first { $_ && conflict($_, $lease) }
			  sort { $a->{told} <=> $b->{told} } grep { $_ } @first{qw(exclusive shared)};
			my $mode = $lease->{args}{mode};

			$successor{"$name $lease->{token}"} = $first;
			$first{$mode} = $lease if !$first{$mode} || $lease->{told} < $first{$mode}{told};
		}
	}
	foreach my $call (grep { $_->{what} =~ /^(?:guard|renew|check|release.*|commit|prepare)$/ } @calls)
	{
		my $row = $call->{args}{op} && $rows->{"$call->{client} $call->{args}{op}"};
		my $finish = $call->{what} eq 'prepare' && was_prepared($call, $row) ? first_settled($call) : 0;

		next unless ok($call) || $row || $finish;
		foreach my $name (@{ $call->{names} })
		{
			my $next = $successor{"$name $call->{token}"} // next;

			violation('stale', describe($call) . ' after ' . describe($next))
			  if $next->{told} < $call->{sent};
			violation('prepared', describe($next) . ' before the end of ' . describe($call))
			  if $next->{told} < $finish;
		}
	}
	return;
}

# Nothing is accepted from a holder that was told that its lease has ended, unless
# a crash may have brought it back.
sub check_ended
{
	foreach my $call (grep { $_->{what} =~ /^(?:guard|renew|check|release|commit|prepare)$/ } @calls)
	{
		my $lease = $call->{lease} // next;

		next if !ok($call) || ($lease->{over} // $forever) >= $call->{sent};
		violation('ended', describe($call) . ' of ' . describe($lease))
		  unless fault($crash, $lease->{told}, $call->{answered});
	}
	return;
}

# ---- What was written ----

# What was committed under a guard: all of it, nothing else, in order.  Returns
# what was found.
sub check_commits
{
	my @rows = map {
		{ name => $_->[0], n => $_->[1], token => $_->[2], op => "$_->[3] $_->[4]" }
	} lines('committed');
	my %counter = map { $_->[0] => $_->[1] } lines('counters');
	my %called =
	  map { ("$_->{client} $_->{args}{op}" => $_) } grep { $_->{what} =~ /^(?:commit|prepare)$/ } @calls;
	my %found;
	my %last;

	foreach my $row (sort { $a->{n} <=> $b->{n} || $a->{token} <=> $b->{token} } @rows)
	{
		my $call = $called{ $row->{op} };
		my $last = $last{ $row->{name} } // { n => 0, token => 0, op => 'none' };
		my $what = "row $row->{n} of $row->{name}, client and operation $row->{op}, token $row->{token}";

		$n{commits}++;
		violation('commits', "$what: never called for")
		  if !$call || $call->{token} != $row->{token} || $call->{args}{n} != $row->{n};
		violation('commits', "$what: refused, " . describe($call))
		  if $call && defined $call->{answered} && !ok($call);
		violation('commits', "$what: is there twice") if $found{ $row->{op} };
		violation('lost-update', "$what: follows row $last->{n}, client and operation $last->{op}")
		  if $row->{n} != $last->{n} + 1;
		violation('stale', "$what: committed after one of token $last->{token}")
		  if $row->{token} < $last->{token};
		$found{ $row->{op} } = 1;
		$last{ $row->{name} } = $row;
	}
	foreach my $name (sort keys %counter)
	{
		my $count = grep { $_->{name} eq $name } @rows;
		violation('lost-update', "$name was counted to $counter{$name}, in $count rows")
		  if $counter{$name} != $count;
	}
	foreach my $call (grep { $_->{what} eq 'commit' } values %called)
	{
		violation('commits', describe($call) . ': acknowledged, and not there')
		  if ok($call) && !may_be_lost($call) && !$found{"$call->{client} $call->{args}{op}"};
	}
	foreach my $call (grep { $_->{what} eq 'prepare' } values %called)
	{
		check_settled($call, $found{"$call->{client} $call->{args}{op}"});
	}
	return \%found;
}

# A prepared transaction does what it was told to in the end, and goes nowhere
# before that.
sub check_settled
{
	my ($prepare, $row) = @_;
	my @calls = @{ $settled{"$prepare->{client} $prepare->{args}{op}"} // [] };
	my @done = grep { ok($_) && !may_be_lost($_) } @calls;

	$n{'prepared transactions'}++ if ok($prepare);
	violation('commits', describe($prepare) . ': is there, and nobody has committed it')
	  if $row && !any { $_->{args}{commit} } @calls;
	foreach my $call (@done)
	{
		violation('commits', describe($prepare) . ($row ? ': is there' : ': is not there') . ', unlike ' . describe($call))
		  if $call->{args}{commit} xor $row;
	}
	return unless ok($prepare) && !may_be_lost($prepare);
	foreach my $call (grep { ($_->{answer}{error} // '') eq '42704' } @calls)
	{
		violation('prepared', describe($prepare) . ' is gone before ' . describe($call))
		  unless any { !$_->{answer}{error} && $_->{sent} < $call->{answered} } @calls;
	}
	return;
}

# A table that is protected takes no write without a guard.
sub check_protected
{
	foreach my $call (grep { $_->{what} eq 'unguarded' } @calls)
	{
		$n{'refused writes'}++ if ($call->{answer}{error} // '') eq 'LK002';
		violation('unguarded', describe($call)) if ok($call);
	}
	return;
}

# An external file that keeps the greatest token it has seen.
sub check_file
{
	my ($name) = @_;
	my %called = map { ("$_->{what} $_->{client} $_->{args}{op}" => $_) }
	  grep { $_->{what} =~ /^file/ && $_->{names}[0] eq $name } @calls;
	my %by_token = map { $_->{token} => $_ } @{ $by_name{$name} // [] };
	my %found;
	my $last_token = 0;
	my $value = 0;

	foreach my $line (lines("file-$name"))
	{
		my ($token, $what, $written, $client, $op) = @$line;
		my $call = $called{"file-$what $client $op"};
		my $text = "file $name: $what of $written, client $client operation $op, token $token";

		$n{'file writes'}++ if $what eq 'write';
		violation('file', "$text: never called for") if !$call || $call->{token} != $token;
		violation('file', "$text: after token $last_token") if $token < $last_token;
		violation('file', "$text: the value was $value")
		  if $written != ($what eq 'write' ? $value + 1 : $value);
		$found{"file-$what $client $op"} = 1;
		$last_token = max($last_token, $token);
		$value = $written;
	}
	while (my ($key, $call) = each %called)
	{
		next unless defined $call->{answered};
		if (defined $call->{answer}{value})
		{
			violation('file', describe($call) . ': accepted, and not there') unless $found{$key};
			next;
		}

		# Who believes in its lease has the greatest token.
		my $lease = $by_token{ $call->{token} };
		violation('file', describe($call) . ': refused, while held by ' . describe($lease))
		  if $lease && $call->{answered} < $lease->{end};
	}
	return;
}

# ---- Waiting ----

# Is the same request under way in another session?
sub asked_elsewhere
{
	my ($call) = @_;

	return any {
		$_ != $call && $_->{sent} < $call->{answered}
		  && ($_->{answered} // $_->{gone} // $forever) > $call->{sent}
	} @{ $requests{ $call->{args}{request} // '' } // [] };
}

# Whoever has been waiting for more than a second when another begins to is
# granted first, and so if it gives up, nobody has passed it a second before.  Only
# where nothing can have kept its request from the queue, or a grant from being
# told: its client was not stopped until the other's request was sent, or until it
# had given up, no server process (but for a sleeping worker) until both were
# answered, no crash or cut, and nobody ended leases by force, after which a request
# whose grant it had not been told yet queues up anew.
sub check_fifo
{
	my ($name) = @_;
	my @fresh = grep { !$_->{again} } @{ $acquires{$name} };
	my @granted = grep { defined $_->{token} } @fresh;
	my @forced = grep { $_->{what} eq 'force' && $_->{names}[0] eq $name } @calls;
	my @long = grep {
		(defined $_->{token} || (gave_up($_) && !asked_elsewhere($_)))
		  && $_->{answered} - $_->{sent} > $second
	} @fresh;

	foreach my $early (@long)
	{
		my $gave_up = !defined $early->{token};

		next
		  if any { $_->{sent} < $early->{answered} && ($_->{answered} // $_->{gone} // $forever) > $early->{sent} }
		  @forced;
		foreach my $late (@granted)
		{
			next if $late->{sent} < $early->{sent} + $second || $late->{sent} > $early->{answered};
			next unless conflict($early, $late) || $early->{args}{limit};
			next
			  if fault(qr/^stop-client$/, $early->{sent}, $gave_up ? $early->{answered} : $late->{sent}, $early->{client})
			  || fault($server, $early->{sent}, max($early->{answered}, $late->{told}));
			$n{'ordered pairs of waiters'}++;
			violation('fifo', "$name: " . describe($late) . ' before ' . describe($early))
			  if $gave_up ? $late->{told} < $early->{answered} - $second : $late->{token} < $early->{token};
		}
	}
	return;
}

# Does nothing explain that what should have happened to this client from .. to
# has not been noted?
sub undisturbed
{
	my ($client, $from, $to) = @_;

	return !fault($server, $from, $to) && !fault(qr/^stop-client$/, $from, $to, $client);
}

# How late was the lease of a holder taken over by one who had been waiting?  It
# ended when a release, or the end of its transaction, was answered, or else when
# the time to live has passed since the last answer, at the latest.  The bound is
# for those that no other fault explains; nor was the server in a grace.  And
# nobody can have had the lock in between without having heard of it: no call was
# without an answer.
sub check_takeover
{
	my ($name) = @_;
	my @in_order = sort { $a->{token} <=> $b->{token} } @{ $by_name{$name} };
	my @unanswered = grep { !defined $_->{answered} } @{ $acquires{$name} };

	foreach my $i (0 .. $#in_order - 1)
	{
		my ($dead, $next) = @in_order[ $i, $i + 1 ];
		next
		  if !$dead->{over}
		  && ($dead->{released} || $dead->{args}{scope} ne 'lease' || $dead->{unsure});

		my $deadline = $dead->{over} // $dead->{asked} + $dead->{args}{ttl} * 1000;
		next if $next->{again} || $next->{sent} > $deadline - 50_000;
		my $ms = max(0, ($next->{told} - $deadline) / 1000);

		if (  !undisturbed($next->{client}, $deadline - 100_000, $next->{told})
			|| in_grace($deadline, $next->{told})
			|| any { $_->{sent} < $next->{told} && ($_->{gone} // $forever) + $_->{args}{ttl} * 1000 > $deadline - $second }
			@unanswered)
		{
			push @disturbed, $ms;
			next;
		}
		push @late, $ms;
		push @alone, $ms if !$dead->{over} && fault(qr/^stop-worker$/, $deadline, $deadline);
		violation('takeover', sprintf('%s: %.1f ms late, %s after %s', $name, $ms, describe($next), describe($dead)))
		  if $ms > $bound;
	}
	return;
}

# Most of them are not late at all, with or without the worker's help.
sub check_takeovers
{
	foreach my $late (\@late, \@alone)
	{
		my @sorted = sort { $a <=> $b } @$late;
		my $median = $sorted[ @sorted / 2 ];

		violation('takeover', sprintf 'half of %d are more than %.1f ms late', scalar @sorted, $median)
		  if @sorted >= 10 && $median > $typical;
	}
	return;
}

# Nobody is told earlier than asked for that the wait is over, and nobody has to
# wait for longer unless a fault explains it.  The lease of a request that was
# repeated is waited for by the one who asked last.  What PostgreSQL's lock manager
# does goes by the wall clock: lock_timeout there, and the wait for a prepared
# transaction.  Statements that may wait for a row lock are not looked at.
sub check_wait
{
	my $prompt =
	  qr/^(?:acquire|watch|renew|check|guard|release|release-at-commit|force|commit|prepare|settle|end)$/;
	my %prepared = map { ($_->{names}[0] => 1) } grep { $_->{what} eq 'prepare' } @calls;

	foreach my $call (grep { $_->{what} =~ $prompt } @calls)
	{
		my $end = $call->{answered} // $call->{lost} // next;
		my $is_acquire = $call->{what} eq 'acquire';
		my $wait = $call->{args}{wait} // 0;
		my $longest = $wait < 0 ? $forever : $wait * 1000;
		my $lock_timeout = $call->{lock_timeout} ? $call->{lock_timeout} * 1000 : $forever;
		my $stepped = fault($clock, 0, $end);

		next if $stepped && any { $prepared{$_} } @{ $call->{names} };
		violation('wait', 'given up too early: ' . describe($call))
		  if gave_up($call)
		  && !asked_elsewhere($call)
		  && $end < $call->{sent} + min($longest, $lock_timeout)
		  && !($stepped && $call->{lock_timeout});

		$longest = min($longest, $lock_timeout) if $is_acquire && $wait;
		violation('wait', "$wait ms took " . int(($end - $call->{sent}) / 1000) . ' ms: ' . describe($call))
		  if $end > $call->{sent} + $longest + $bound * 1000
		  && undisturbed($call->{client}, $call->{sent}, $end);
	}
	return;
}

# Was this answered because the wait was over?
sub gave_up
{
	my ($call) = @_;
	my $error = $call->{answer}{error};

	return 0 if !defined $call->{answered};
	return $error eq '55P03' if $error;
	return $call->{what} eq 'acquire' ? $call->{answer}{none} : $call->{what} eq 'watch' && seen($call) == $call->{token};
}

# ---- Watching ----

# The token that a watcher was told, 0 for none.
sub seen
{
	my ($watch) = @_;

	return $watch->{answer}{value} // 0;
}

# Did its holder rely on this lease until then, and was it not lost?
sub is_held
{
	my ($lease, $until) = @_;

	return $lease->{end} > $until && !may_be_gone($lease, $until);
}

# A watcher is told the newest token, which was granted, is not that of a lease
# that has a successor, and does not go back; and that nobody has the lock only
# when nobody has.
sub check_seen
{
	my ($watch, $newest) = @_;
	my $name = $watch->{names}[0];
	my @grants = @{ $by_name{$name} // [] };
	my $seen = seen($watch);

	$n{'changes seen by watchers'}++ if $seen != $watch->{token};
	if ($seen == 0)
	{
		my $holder = first { $_->{told} < $watch->{sent} && is_held($_, $watch->{answered}) } @grants;
		violation('watch', describe($watch) . ' sees nobody, held by ' . describe($holder)) if $holder;
		return;
	}

	my $which = first { $_->{token} == $seen } @grants;
	violation('watch', describe($watch) . " sees $seen, which nobody can have")
	  if $which ? $which->{first_sent} > $watch->{answered}
	  : !any { !defined $_->{answered} && $_->{sent} < $watch->{answered} } @{ $acquires{$name} };

	# A promotion may have undone what was before it.
	my $last = $newest->{"$watch->{client} $name"};
	my $newer = first {
		$_->{token} > $seen && $_->{told} < $watch->{sent}
		  && !fault($lossy, $_->{told}, $watch->{answered})
	} @grants;
	violation('watch', describe($watch) . " sees $seen after " . describe($last))
	  if $last && $seen < seen($last) && !fault($lossy, $last->{sent}, $watch->{answered});
	violation('watch', describe($watch) . " sees $seen, after " . describe($newer)) if $newer;
	$newest->{"$watch->{client} $name"} = $watch;
	return;
}

# When was there, before the end, something else to be seen than what this watcher
# knew?
sub changed
{
	my ($watch, $end) = @_;
	my $token = $watch->{token};
	my @changed;

	foreach my $lease (@{ $by_name{ $watch->{names}[0] } // [] })
	{
		if ($token == 0)
		{
			# There for long enough
			my $since = max($watch->{sent}, $lease->{told});
			push @changed, $since if is_held($lease, $since + $bound * 1000);
			next;
		}
		push @changed, $lease->{told} if $lease->{token} > $token && !fault($lossy, $lease->{told}, $end);

		# A crash may have brought it back.
		next if $lease->{token} != $token || fault($crash, $lease->{told}, $end);
		push @changed, $lease->{over} if $lease->{over};
		push @changed, $lease->{asked} + $lease->{args}{ttl} * 1000
		  if $lease->{args}{ttl} && !$lease->{unsure};
	}
	return max($watch->{sent}, min($forever, @changed));
}

# A watcher is told of a change in time.
sub check_watch
{
	my %newest;                 # client and name -> the last that was told a token

	foreach my $watch (grep { $_->{what} eq 'watch' } @calls)
	{
		check_seen($watch, \%newest) if defined $watch->{answered} && !$watch->{answer}{error};

		my $end = $watch->{answered} // $watch->{lost} // next;
		my $changed = changed($watch, $end);
		violation('watch', describe($watch) . ' was told ' . int(($end - $changed) / 1000) . ' ms late')
		  if $end > $changed + $bound * 1000 && undisturbed($watch->{client}, $changed, $end);
	}
	return;
}

# ---- The rest ----

# What clients have to be ready for, and nothing else.
sub check_errors
{
	my $promoted = fault($promotion, 0, $forever);

	foreach my $call (grep { $_->{answer} && $_->{answer}{error} } @calls)
	{
		my $error = $call->{answer}{error};

		violation('errors', "$error: " . describe($call))
		  unless $expected{$error}
		  || $expected_of{ $call->{what} }{$error}
		  || ($error eq 'LK001' && ($call->{token} || $call->{what} eq 'end'))
		  || ($promoted && $expected_in_promotion{$error});
	}
	return;
}

# Nothing is left, and everything can be used again.
sub check_end
{
	foreach my $line (lines('final.log'))
	{
		my ($name, $value) = @$line;

		violation('end', "$name: $value")
		  if $name =~ /^(leases|waiters|missing|prepared|not cleared)$/ && $value ne '0';
		violation('server', $value) if $name eq 'server';
		$n{$name} = $value if $name =~ /timeouts$/;
	}
	return;
}

# A run of so many minutes has something to show.
sub check_least
{
	my ($minutes) = @_;
	my %done =
	  map { ($workload{ $_->{client} } // '' => 1) }
	  grep { defined($_->{token} // $_->{answer}{value}) }
	  grep { $_->{answer} && $_->{what} =~ /^(?:acquire|watch|force)$/ } @calls;

	violation('least', 'there are no clients') if !%workload;
	foreach my $name ('final.log', 'counters', $minutes >= 1 ? 'committed' : ())
	{
		violation('least', "there is nothing in $name") if !lines($name);
	}
	foreach my $name (uniq sort values %workload)
	{
		violation('least', "clients of workload $name were granted nothing") if !$done{$name};
	}
	violation('least', @late . ' takeovers')
	  if @late < int($minutes) && fault(qr/^servers-alone$/, 0, $forever);
	return;
}

# Apply all rules to the history that has been read, of a run of so many minutes if
# it has to have come to something.
sub judge
{
	my ($minutes, $lost, $repeated, @files);

	($bound, $typical, $minutes, $lost, $repeated, @files) = @_;
	foreach my $lease (@grants)
	{
		push @{ $by_name{$_} }, $lease foreach @{ $lease->{names} };
	}
	foreach my $call (@calls)
	{
		push @{ $settled{"$call->{args}{writer} $call->{args}{op}"} }, $call if $call->{what} eq 'settle';
		next if $call->{what} ne 'acquire';
		push @{ $requests{ $call->{args}{request} } }, $call if $call->{args}{request} ne '';
		push @{ $acquires{$_} }, $call foreach @{ $call->{names} };
	}
	violation('lost', describe($_) . ' of ' . describe($_->{lease})) foreach @$lost;
	violation('tokens', 'the same token for two requests: ' . describe($_)) foreach @$repeated;
	check_exclusion();
	check_tokens();
	check_stale(check_commits());
	check_ended();
	check_protected();
	check_file($_) foreach @files;
	check_fifo($_) foreach sort keys %by_name;

	# Shared leases, permits and requests for several locks wait for more than one,
	# and what is prepared or ended by force for what we do not know.
	my %other =
	  map { ($_->{names}[0] => 1) } grep { $_->{what} =~ /^(?:prepare|force)$/ } @calls;
	foreach my $name (sort keys %by_name)
	{
		check_takeover($name)
		  unless $other{$name} || any { $_->{args}{mode} ne 'exclusive' || $_->{args}{limit} || @{ $_->{names} } > 1 }
		  @{ $acquires{$name} };
	}
	check_takeovers();
	check_wait();
	check_watch();
	check_errors();
	check_end();
	check_least($minutes) if defined $minutes;
	return;
}

1;
