package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// shared is what the tasks of one run share on this host: their speed limits, their channels, and the moment of a group.
type shared struct {
	users    int // tasks (Agent.mu)
	reads    *bucket
	sends    *bucket
	channels chan struct{} // one token for each disk that is read; nil: no bound
	ready    *gate         // every VM of the group can be frozen
	frozen   *gate         // every VM of the group is
}

// share returns what the run of a task shares; done lets go of it.
func (a *Agent) share(t *wire.Task) (s *shared, done func(), err error) {
	zone, err := checkLimits(t)
	if err != nil {
		return nil, nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s = a.shares[t.Run]
	if s == nil {
		s = &shared{reads: newBucket(a.o.Clock, t.Limits, true, zone), sends: newBucket(a.o.Clock, t.Limits, false, zone)}
		if t.Channels > 0 {
			s.channels = make(chan struct{}, min(t.Channels, maxChannels))
		}
		if t.Group > 1 {
			s.ready, s.frozen = newGate(t.Group), newGate(t.Group)
		}
		a.shares[t.Run] = s
	}
	s.users++
	return s, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if s.users--; s.users == 0 && s.ready == nil { // a group's gates are needed until the last member came
			delete(a.shares, t.Run)
		} else if s.users == 0 && s.frozen.whole() {
			delete(a.shares, t.Run)
		}
	}, nil
}

const (
	maxChannels = 256
	// groupPatience is how long a member of a group waits for the others. Then it goes on alone, and its set says so.
	groupPatience = 5 * time.Minute
)

// A gate opens when all members of a group have come, or have given up.
type gate struct {
	mu    sync.Mutex
	size  int
	came  int
	lost  int // of came: gave up, or stopped waiting
	open  chan struct{}
	first time.Time
	last  time.Time
}

func newGate(size int) *gate { return &gate{size: size, open: make(chan struct{})} }

// arrive counts a member at a moment, or (lost) one that will never come.
func (g *gate) arrive(at time.Time, lost bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.came++
	switch {
	case lost:
		g.lost++
	case g.first.IsZero():
		g.first, g.last = at, at
	default:
		g.last = at
	}
	if g.came == g.size {
		close(g.open)
	}
}

// whole tells whether every member has been here.
func (g *gate) whole() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.came >= g.size
}

// wait waits for the others. It returns what is remarkable about the group as it is.
func (g *gate) wait(ctx context.Context, c clock.Clock) (note string, err error) {
	late, stop := c.After(groupPatience)
	defer stop()
	select {
	case <-g.open:
	case <-late:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	there := g.came - g.lost
	note = fmt.Sprintf("frozen together with %d others within %v", there-1, g.last.Sub(g.first).Round(time.Millisecond))
	if there < g.size {
		note += fmt.Sprintf("; %d of the group are missing", g.size-there)
	}
	return note, nil
}

// A member is one task's place in a group. The zero member is of none.
type member struct {
	s      *shared
	clock  clock.Clock
	passed int // gates that were arrived at
}

func newMember(s *shared, t *wire.Task, c clock.Clock) *member {
	if t.Group <= 1 || s.ready == nil {
		return &member{}
	}
	return &member{s: s, clock: c}
}

// come waits at the next gate for the others.
func (m *member) come(ctx context.Context) (note string, err error) {
	if m.s == nil {
		return "", nil
	}
	g := m.s.ready
	if m.passed > 0 {
		g = m.s.frozen
	}
	m.passed++
	g.arrive(m.clock.Now(), false)
	return g.wait(ctx, m.clock)
}

// leave tells the gates that were not reached that nobody comes.
func (m *member) leave() {
	if m.s == nil {
		return
	}
	for i, g := range []*gate{m.s.ready, m.s.frozen} {
		if i >= m.passed {
			g.arrive(time.Time{}, true)
		}
	}
}

// skipped tells whether a disk is among those that a task leaves out.
func skipped(t *wire.Task, d *holdfast.Disk) bool {
	for _, p := range t.Skip {
		if p == d.ID.String() || matchName(p, d.Name) {
			return true
		}
	}
	return false
}
