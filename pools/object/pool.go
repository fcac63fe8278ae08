package object

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/s3store"
	"github.com/holdfast-backup/holdfast/pools/dedup"
)

// A Pool is an open pool in a bucket: the dedup engine, and what only buckets have.
type Pool struct {
	*dedup.Pool
	pl *place
}

var (
	_ pools.Pool      = (*Pool)(nil)
	_ pools.Collector = (*Pool)(nil)
	_ pools.Verifier  = (*Pool)(nil)
	_ pools.Holder    = (*Pool)(nil)

	_ pools.PathRebuilder = (*Pool)(nil)
)

// EventRequests tells what a set cost in requests.
const EventRequests holdfast.EventType = "pool-requests"

// Requests returns what was asked of the server since the pool was opened, by kind of request.
func (p *Pool) Requests() map[blob.Verb]blob.Count { return p.pl.count.All() }

// Unbounded is the free space that is reported for a bucket without a quota: no server says how much it has.
const Unbounded = int64(1) << 60

// Usage implements pools.Pool. A bucket's size is its quota, or, without one, what is stored and Unbounded more.
func (p *Pool) Usage(ctx context.Context) (pools.Usage, error) {
	u, err := p.Pool.Usage(ctx)
	if err != nil {
		return u, err
	}
	if q := p.pl.c.Quota; q > 0 {
		u.Size, u.Free = max(q, u.Stored), max(q-u.Stored, 0)
	} else {
		u.Size, u.Free = u.Stored+Unbounded, Unbounded
	}
	return u, nil
}

// Begin implements pools.Pool. It fails with Busy while another appliance owns the pool, and with NoSpace beyond the quota.
func (p *Pool) Begin(ctx context.Context, m holdfast.Manifest) (pools.Session, error) {
	if err := blob.Cancelled(ctx, "begin set"); err != nil {
		return nil, err
	}
	if err := p.pl.holds(); err != nil {
		return nil, err
	}
	if p.pl.c.Quota > 0 {
		u, err := p.Usage(ctx)
		if err != nil {
			return nil, err
		}
		if u.Free <= 0 {
			return nil, holdfast.Errorf(holdfast.NoSpace, "begin set", "the pool has %d bytes, its quota is %d", u.Stored, p.pl.c.Quota).Advise("delete sets and collect, or raise the quota")
		}
	}
	s, err := p.Pool.Begin(ctx, m)
	if err != nil {
		return nil, err
	}
	return &session{Session: s, p: p, before: p.pl.count.Total(), id: m.ID}, nil
}

// A session is the engine's, counted.
type session struct {
	pools.Session
	p      *Pool
	before blob.Count
	id     holdfast.SetID
}

// Commit implements pools.Session.
func (s *session) Commit(ctx context.Context, m holdfast.Manifest) (pools.Receipt, error) {
	r, err := s.Session.Commit(ctx, m)
	if err != nil {
		return r, err
	}
	now := s.p.pl.count.Total()
	requests, bytes := now.Requests-s.before.Requests, now.Bytes-s.before.Bytes
	perGiB := float64(requests) / max(float64(bytes), 1) * (1 << 30)
	s.p.pl.env.Listener.Emit(holdfast.Event{Type: EventRequests, Severity: holdfast.Info,
		Text: fmt.Sprintf("the set took %d requests for %d bytes (%.0f a GiB); sets written at the same time count in each other", requests, bytes, perGiB),
		Fields: map[string]string{"pool": s.p.Traits().ID.String(), "set": s.id.String(), "requests": strconv.FormatInt(requests, 10),
			"bytes": strconv.FormatInt(bytes, 10), "requests_per_gib": strconv.FormatFloat(perGiB, 'f', 0, 64)}})
	return r, nil
}

// Delete implements pools.Pool. A set under retention is Immutable.
func (p *Pool) Delete(ctx context.Context, id holdfast.SetID) error {
	if err := blob.Cancelled(ctx, "delete set"); err != nil {
		return err
	}
	if p.pl.locks() {
		held, err := p.pl.retention(ctx, dedup.SetObject(id))
		if err != nil && holdfast.KindOf(err) != holdfast.NotExist {
			return err
		}
		if err == nil && held.Until.After(p.pl.env.Clock.Now()) {
			return holdfast.Errorf(holdfast.Immutable, "delete set", "set %s is kept until %s (%s)", id, held.Until.UTC().Format(time.RFC3339), held.Mode).
				Advise("wait until then: nobody can shorten COMPLIANCE, and GOVERNANCE only with a special right at the server")
		}
	}
	return p.Pool.Delete(ctx, id)
}

// Hold implements pools.Holder. All objects that the set needs, shared ones included, are retained by the server until the date; the set's record
// goes last, so that a Hold that failed in the middle is one that has not been. An earlier date than the set has already is Immutable.
func (p *Pool) Hold(ctx context.Context, id holdfast.SetID, until time.Time, mode pools.HoldMode) error {
	const op = "hold set"
	want := s3store.Lock{Until: until}
	switch mode {
	case pools.Governance:
		want.Mode = s3store.Governance
	case pools.Compliance:
		want.Mode = s3store.Compliance
	default:
		return holdfast.Errorf(holdfast.Invalid, op, "mode %q", mode).Advise("choose governance or compliance")
	}
	if !p.pl.locks() {
		return holdfast.Errorf(holdfast.Unsupported, op, "the bucket has no Object Lock").Advise("make the pool in a bucket with Object Lock enabled: most servers cannot enable it later")
	}
	if !until.After(p.pl.env.Clock.Now()) {
		return holdfast.Errorf(holdfast.Invalid, op, "the date %s is not ahead", until.UTC().Format(time.RFC3339))
	}
	names, err := p.Objects(ctx, id)
	if err != nil {
		return err
	}
	record := dedup.SetObject(id)
	have, err := p.pl.retention(ctx, record)
	if err != nil {
		return err
	}
	if until.Before(have.Until.Add(-time.Second)) || have.Mode == s3store.Compliance && want.Mode == s3store.Governance && have.Until.After(p.pl.env.Clock.Now()) {
		return holdfast.Errorf(holdfast.Immutable, op, "the set is kept until %s (%s) already, which can only be extended", have.Until.UTC().Format(time.RFC3339), have.Mode)
	}
	others := names[:0]
	for _, n := range names {
		if n != record {
			others = append(others, n)
		}
	}
	if err := each(ctx, others, func(ctx context.Context, n string) error { return p.retain(ctx, n, want) }); err != nil {
		return err
	}
	return p.retain(ctx, record, want)
}

// extend makes the containers of a set that is about to be committed last as long as the set.
func (p *Pool) extend(ctx context.Context, names []string) error {
	return each(ctx, names, func(ctx context.Context, n string) error {
		return p.pl.everywhere(ctx, func(k *keeper) error { return k.extend(ctx, n) })
	})
}

func (p *Pool) retain(ctx context.Context, name string, want s3store.Lock) error {
	return p.pl.everywhere(ctx, func(k *keeper) error { return k.retain(ctx, name, want) })
}

// Verify implements pools.Verifier. Of a stripe it reads all shards, parity too, after what every pool verifies, and heals what is bad: only what could not
// be healed is damage.
func (p *Pool) Verify(ctx context.Context, o pools.VerifyOptions) (pools.VerifyReport, error) {
	rep, err := p.Pool.Verify(ctx, o)
	if err != nil || len(o.Sets) > 0 || p.pl.stripe == nil {
		return rep, err
	}
	whole := len(rep.Damaged) == 0 // else the sets that are hit are named already, and the listener heard of each object
	scrub, err := p.pl.stripe.Scrub(ctx, nil)
	for _, n := range scrub.Unhealed {
		if whole {
			rep.Damaged = append(rep.Damaged, pools.Damage{Where: n, Text: "shards are damaged or missing and could not be written again"})
		}
	}
	return rep, err
}

// RebuildPath implements pools.PathRebuilder: the bucket to gets its shard of every object in the stead of the bucket from, while the pool is in use.
func (p *Pool) RebuildPath(ctx context.Context, from, to string, progress func(done, all int64)) error {
	const op = "rebuild bucket"
	if p.pl.stripe == nil {
		return holdfast.Errorf(holdfast.Unsupported, op, "the pool is not striped")
	}
	names, _ := p.pl.stripe.Members()
	number := slices.Index(names, from)
	if again := slices.Index(names, to); again >= 0 {
		if number >= 0 && number != again {
			return holdfast.Errorf(holdfast.Exist, op, "the bucket %s is in the stripe already", to)
		}
		number = again
	}
	if number < 0 {
		return holdfast.Errorf(holdfast.NotExist, op, "the pool has no bucket %s", from)
	}
	steps := func(done, of int) {
		if progress != nil {
			progress(int64(done), int64(of))
		}
	}
	if names[number] == to {
		if whole := p.pl.has(to); whole {
			return p.pl.stripe.Rebuild(ctx, number, nil, to, steps)
		}
	}
	m, err := p.pl.join(ctx, p.Traits().ID, to)
	if err != nil {
		return err
	}
	return p.pl.stripe.Rebuild(ctx, number, p.pl.store(m), to, steps)
}

// retaining is how many requests for retention are under way at a time.
const retaining = 8

// each calls f for every name, several at a time, and returns the first error.
func each(ctx context.Context, names []string, f func(context.Context, string) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan string)
	var wg sync.WaitGroup
	for range min(retaining, len(names)) {
		wg.Go(func() {
			for n := range work {
				if err := f(ctx, n); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	for _, n := range names {
		select {
		case work <- n:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}
