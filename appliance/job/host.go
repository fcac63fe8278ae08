package job

import (
	"context"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// host is a host as far as its tasks are concerned (Engine.mu).
type host struct {
	id      holdfast.HostID
	name    string
	stream  *stream // nil while the agent is not connected
	queue   []*task // waiting for a turn
	atWork  []*task // handed to the agent, not ended
	skipped map[holdfast.VMID][]string
	addrs   []wire.HostAddress // as the host last said

	inventories int // counts those that were recorded
	losses      int // counts the streams that were lost
}

// stream is one connection of an agent for notices.
type stream struct {
	end     context.CancelCauseFunc
	kick    chan struct{}
	notices []wire.Notice // to be sent (Engine.mu); bounded by the tasks of the host
}

func (s *stream) push(n wire.Notice) {
	s.notices = append(s.notices, n)
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func (s *stream) cancel(id holdfast.TaskID) { s.push(wire.Notice{Cancel: id}) }

// drop ends the host's stream, if there is one.
func (h *host) drop(why error) {
	if h.stream != nil {
		h.stream.end(why)
		h.stream = nil
	}
}

// host returns the host, made if need be. The caller has e.mu.
func (e *Engine) host(id holdfast.HostID) *host {
	h := e.hosts[id]
	if h == nil {
		h = &host{id: id, name: id.String()}
		e.hosts[id] = h
	}
	return h
}

func offline(h *host) error {
	return holdfast.Errorf(holdfast.Offline, "", "host %s is offline", h.name).
		Advise("start holdfast-agent on the host, or look at its log; 'holdfast host list' shows who is online")
}

// Online tells whether the host's agent is connected.
func (e *Engine) Online(id holdfast.HostID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.hosts[id]
	return h != nil && h.stream != nil
}

// refreshPause is how long an inventory counts as fresh.
const refreshPause = time.Second

// RefreshStale is Refresh, unless it was done a moment ago.
func (e *Engine) RefreshStale() {
	e.mu.Lock()
	stale := e.o.Clock.Now().Sub(e.refreshed) >= refreshPause
	e.mu.Unlock()
	if stale {
		e.Refresh()
	}
}

// Refresh asks every connected agent what its host has now; what they answer comes by Inventory.
func (e *Engine) Refresh() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.refreshed = e.o.Clock.Now()
	for _, h := range e.hosts {
		if h.stream != nil {
			h.stream.push(wire.Notice{Inventory: true})
		}
	}
}

// Changed returns a channel that is closed when the next inventory was recorded.
func (e *Engine) Changed() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changed
}

// Skipped returns the disks that cannot be backed up, by VM, as the host last said.
func (e *Engine) Skipped(id holdfast.HostID) map[holdfast.VMID][]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if h := e.hosts[id]; h != nil {
		return h.skipped
	}
	return nil
}

// Addresses returns the host's addresses, as it last said since the appliance was started.
func (e *Engine) Addresses(id holdfast.HostID) []wire.HostAddress {
	e.mu.Lock()
	defer e.mu.Unlock()
	if h := e.hosts[id]; h != nil {
		return h.addrs
	}
	return nil
}

// Disconnect ends a host's stream and fails what it was at: the host was removed.
func (e *Engine) Disconnect(id holdfast.HostID) {
	e.mu.Lock()
	h := e.host(id)
	why := holdfast.Errorf(holdfast.Permission, "", "host %s was removed from the appliance", h.name)
	h.drop(why)
	e.fail(h, why)
	e.mu.Unlock()
	e.persist()
}

// fail ends all tasks of a host. The caller has e.mu.
func (e *Engine) fail(h *host, why error) {
	for _, t := range slices.Concat(h.queue, h.atWork) {
		e.conclude(t, why, true)
	}
	e.dispatch()
}

// dispatch hands waiting tasks to agents that have room. The caller has e.mu.
func (e *Engine) dispatch() {
	for _, r := range e.runs {
		e.advance(r)
	}
	for _, h := range e.hosts {
		for again := true; again; {
			again = false
			for _, t := range h.queue {
				if !t.rec.State.Ended() && t.pointless() { // what it would clean up after was never begun
					e.conclude(t, errPointless, true)
					again = true
				}
			}
		}
		ended := func(t *task) bool { return t.rec.State.Ended() }
		h.atWork = slices.DeleteFunc(h.atWork, ended)
		h.queue = slices.DeleteFunc(h.queue, ended)
		for h.stream != nil {
			t := e.choose(h)
			if t == nil {
				break
			}
			e.hand(h, t)
		}
	}
}

var errPointless = holdfast.Errorf(holdfast.Cancelled, "", "nothing was begun that it would have to clean up after")

// hand gives a task to its agent. The caller has e.mu.
func (e *Engine) hand(h *host, t *task) {
	now := e.o.Clock.Now().UTC()
	h.queue = slices.DeleteFunc(h.queue, func(x *task) bool { return x == t })
	h.atWork = append(h.atWork, t)
	t.sent, t.heard = true, true
	t.rec.State, t.rec.Started = catalog.RunRunning, now
	t.run.log(now, t.rec.VMName, "begins on host %s", h.name)
	h.stream.push(e.notice(t))
}

// notice is how a task is told to its agent. The caller has e.mu.
func (e *Engine) notice(t *task) wire.Notice {
	w := t.wireTask()
	if e.o.Route != nil && w.Kind != wire.TaskScript {
		w.Route = e.o.Route(t.host.id, t.run.spec.Options.Network)
	}
	return wire.Notice{Task: w}
}

// choose returns the waiting task whose turn it is, nil if there is none or no room: the run of the highest priority goes first, and among
// equals the one that has the fewest tasks at work on the host, so that a job with many VMs does not keep a small one waiting. Scripts need
// no room; VMs that are frozen together go together. The caller has e.mu.
func (e *Engine) choose(h *host) *task {
	working, busy, room := map[*run]int{}, 0, e.o.VMs
	for _, t := range h.atWork {
		if t.rec.Stage == "" {
			working[t.run]++
			busy++
		}
		room = max(room, t.run.spec.Options.VMs)
	}
	var best *task
	for _, t := range h.queue {
		if t.rec.Stage != "" {
			if t.ready() {
				return t
			}
			continue
		}
		o := &t.run.spec.Options
		full := busy >= max(room, o.VMs) || working[t.run] >= or(o.VMs, e.o.VMs)
		if full && !(o.Group && working[t.run] > 0) {
			continue
		}
		if best != nil {
			p := best.run.spec.Options.Priority
			if o.Priority < p || o.Priority == p && working[t.run] >= working[best.run] {
				continue
			}
		}
		if t.ready() {
			best = t
		}
	}
	return best
}

// Tasks serves a host's task stream until ctx ends or send fails. The host is Online meanwhile. A second stream of a host
// ends the first.
func (e *Engine) Tasks(ctx context.Context, id holdfast.HostID, name string, send func(wire.Notice) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &stream{end: cancel, kick: make(chan struct{}, 1)}
	if err := e.connect(id, name, s); err != nil {
		return err
	}
	defer e.lost(id, s)
	e.persist()
	if err := send(wire.Notice{}); err != nil { // the first line opens the stream at the agent
		return err
	}
	for {
		e.mu.Lock()
		notices := s.notices
		s.notices = nil
		e.mu.Unlock()
		for _, n := range notices {
			if err := send(n); err != nil {
				return err
			}
		}
		beat, stop := e.o.Clock.After(wire.HeartbeatEvery)
		select {
		case <-s.kick:
		case <-beat:
			if err := send(wire.Notice{}); err != nil {
				stop()
				return err
			}
		case <-ctx.Done():
			stop()
			return context.Cause(ctx)
		}
		stop()
	}
}

func (e *Engine) connect(id holdfast.HostID, name string, s *stream) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errShutdown
	}
	h := e.host(id)
	h.name = name
	again := h.stream != nil
	h.drop(holdfast.Errorf(holdfast.Busy, "", "the agent connected anew"))
	h.stream = s
	for _, t := range h.atWork {
		t.heard = false
		if t.phase == "" { // the notice may have been lost on its way; an agent that has the task ignores another one
			s.push(e.notice(t))
		}
		if t.run.cancelled {
			s.cancel(t.rec.ID)
		}
	}
	if len(h.atWork) > 0 {
		e.wg.Go(func() { e.after(forgotten, func() { e.forget(h, s) }) })
	}
	e.dispatch()
	if !again {
		e.o.Listener.Emit(holdfast.Event{Type: holdfast.EventHostOnline, Text: "host " + name + " is online",
			Fields: map[string]string{"host": name, "id": id.String()}})
	}
	return nil
}

// after calls do once d has passed, unless the engine is closed before.
func (e *Engine) after(d time.Duration, do func()) {
	late, stop := e.o.Clock.After(d)
	defer stop()
	select {
	case <-late:
		do()
	case <-e.ctx.Done():
	}
}

// lost notes that a stream is gone and starts the wait for the agent's return.
func (e *Engine) lost(id holdfast.HostID, s *stream) {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.host(id)
	if h.stream != nil && h.stream != s || e.closed {
		return // another one is in its place
	}
	h.stream = nil
	e.o.Listener.Emit(holdfast.Event{Type: holdfast.EventHostOffline, Severity: holdfast.Warning, Text: "host " + h.name + " is offline",
		Fields: map[string]string{"host": h.name, "id": id.String()}})
	if len(h.atWork)+len(h.queue) == 0 {
		return
	}
	waits := map[time.Duration]bool{}
	for _, t := range slices.Concat(h.atWork, h.queue) {
		waits[t.run.spec.Options.reconnect(e.o.Reconnect)] = true
	}
	h.losses++
	no := h.losses
	for d := range waits {
		e.wg.Go(func() {
			e.after(d, func() { e.giveUp(h, no, d) })
		})
	}
}

// giveUp fails the tasks of a host that has not come back since its loss of that number, those that wait no longer than d.
func (e *Engine) giveUp(h *host, no int, d time.Duration) {
	e.mu.Lock()
	if h.stream == nil && h.losses == no {
		for _, t := range slices.Concat(h.queue, h.atWork) {
			if t.run.spec.Options.reconnect(e.o.Reconnect) <= d {
				e.conclude(t, holdfast.Errorf(holdfast.Offline, "", "host %s went offline and did not come back within %v", h.name, d).
					Advise("start holdfast-agent on the host and run the backup again"), true)
			}
		}
		e.dispatch()
	}
	e.mu.Unlock()
	e.persist()
}

// forget ends the tasks that an agent which came back knows nothing of: it was restarted.
func (e *Engine) forget(h *host, s *stream) {
	e.mu.Lock()
	if h.stream == s {
		for _, t := range h.atWork {
			if !t.heard && e.again(t) {
				s.push(e.notice(t))
				continue
			}
			if !t.heard {
				e.conclude(t, holdfast.Errorf(holdfast.Offline, "", "the agent of host %s was restarted in the middle of the task", h.name).
					Advise("run it again; what was sent already is not sent twice"), true)
			}
		}
		e.dispatch()
	}
	e.mu.Unlock()
	e.persist()
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}
