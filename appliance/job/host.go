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

	inventories int // counts those that were recorded
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
	for _, h := range e.hosts {
		ended := func(t *task) bool { return t.rec.State.Ended() }
		h.atWork = slices.DeleteFunc(h.atWork, ended)
		h.queue = slices.DeleteFunc(h.queue, ended)
		for h.stream != nil && len(h.queue) > 0 && len(h.atWork) < e.o.VMs {
			t := h.queue[0]
			h.queue = h.queue[1:]
			h.atWork = append(h.atWork, t)
			t.sent, t.heard = true, true
			t.rec.State, t.rec.Started = catalog.RunRunning, e.o.Clock.Now().UTC()
			t.run.dirty = true
			h.stream.push(wire.Notice{Task: t.wireTask()})
		}
	}
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
			s.push(wire.Notice{Task: t.wireTask()})
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
	e.wg.Go(func() {
		e.after(e.o.Reconnect, func() { e.giveUp(h) })
	})
}

// giveUp fails the tasks of a host that has not come back.
func (e *Engine) giveUp(h *host) {
	e.mu.Lock()
	if h.stream == nil {
		e.fail(h, holdfast.Errorf(holdfast.Offline, "", "host %s went offline and did not come back within %v", h.name, e.o.Reconnect).
			Advise("start holdfast-agent on the host and run the backup again"))
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
				s.push(wire.Notice{Task: t.wireTask()})
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
