package notify

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// Options make a Notifier. All of them may be left out.
type Options struct {
	Store Store          // nil: Memory
	Clock clock.Clock    // nil: the machine's
	Zone  *time.Location // of windows, digests and the times in texts; nil: UTC
	Site  string         // the appliance's name in messages
	// Remind tells targets again of an alarm that is raised again this long after they were told last. 0: never.
	Remind time.Duration
	// Listener is told when a target fails and when it works again. It may hand the event back to Accept; the failing target itself is
	// not told.
	Listener holdfast.Listener
	// Dial makes connections; nil: the machine's network.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Bounds of the state.
const (
	maxQueue   = 1000  // messages that wait for one target; beyond, the mildest become a summary
	maxAlarms  = 20000 // open alarms; beyond, events count as plain ones
	floodLines = 20    // of a summary
	digestLine = 200   // lines of a digest
)

// An Alarm is one that is raised and not cleared.
type Alarm struct {
	Key      string             `json:"key"`
	Type     holdfast.EventType `json:"type"`
	Severity holdfast.Severity  `json:"severity"`
	Text     string             `json:"text"`
	Raised   time.Time          `json:"raised"`
	Last     time.Time          `json:"last"`           // when somebody was told
	Told     []string           `json:"told,omitempty"` // targets
}

// A Notifier brings events to targets. All its methods are safe for concurrent use.
type Notifier struct {
	o        Options
	env      env
	maxQueue int

	mu      sync.Mutex
	cursor  uint64 // number of the last event taken
	seq     uint64 // of the last delivery
	alarms  map[string]*Alarm
	targets map[string]*target
	owed    []*delivery // that are done with, but could not be taken out of the store
	kick    chan struct{}
}

// target is a Target at work.
type target struct {
	Target
	state  state
	queue  []*delivery // in order; the values are never changed, only replaced
	busy   bool        // the queue's head is being sent
	status Status
}

// state is what is kept of a target beside its queue.
type state struct {
	Start   time.Time `json:"start"`            // of the time in which Sent counts
	Sent    int       `json:"sent"`             // messages let through since Start
	Held    pile      `json:"held"`             // what flood control and a full queue held back
	Digest  pile      `json:"digest"`           // what waits for the digest
	Due     time.Time `json:"due,omitzero"`     // of the digest, while there is one
	Failing bool      `json:"failing,omitzero"` // the listener was told so
}

// delivery is a message on its way to a target.
type delivery struct {
	Seq      uint64    `json:"seq"`
	Target   string    `json:"target"`
	Message  Message   `json:"message"`
	Queued   time.Time `json:"queued"`
	Attempts int       `json:"attempts,omitzero"`
	Next     time.Time `json:"next,omitzero"`  // not before
	Done     []string  `json:"done,omitempty"` // recipients served
	Error    string    `json:"error,omitempty"`
}

// New returns a Notifier that goes on from what its store has. What is stored for targets that are no longer there is dropped.
func New(o Options, targets []Target) (*Notifier, error) {
	if o.Store == nil {
		o.Store = NewMemory()
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Zone == nil {
		o.Zone = time.UTC
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	n := &Notifier{o: o, env: env{o.Clock, o.Site, o.Dial}, maxQueue: maxQueue, alarms: map[string]*Alarm{}, targets: map[string]*target{}, kick: make(chan struct{}, 1)}
	stored := map[string]*target{}
	if err := n.load(stored); err != nil {
		return nil, err
	}
	n.targets = stored
	return n, n.SetTargets(targets)
}

// Keys of the store.
const (
	cursorKey = "cursor"
	alarmKey  = "alarm/"
	stateKey  = "target/"
	queueKey  = "queue/"
)

func (n *Notifier) load(into map[string]*target) error {
	get := func(name string) *target {
		if into[name] == nil {
			into[name] = &target{Target: Target{Name: name}}
		}
		return into[name]
	}
	err := n.o.Store.Load(func(key string, value []byte) (err error) {
		switch kind, name, _ := strings.Cut(key, "/"); kind + "/" {
		case alarmKey:
			var a Alarm
			err = json.Unmarshal(value, &a)
			n.alarms[a.Key] = &a
		case stateKey:
			err = json.Unmarshal(value, &get(name).state)
		case queueKey:
			var d delivery
			err = json.Unmarshal(value, &d)
			t := get(d.Target)
			t.queue = append(t.queue, &d)
			n.seq = max(n.seq, d.Seq)
		case cursorKey + "/":
			err = json.Unmarshal(value, &n.cursor)
		}
		if err != nil {
			return holdfast.Errorf(holdfast.Corrupt, "load notifications", "%q: %w", key, err)
		}
		return nil
	})
	for _, t := range into {
		slices.SortFunc(t.queue, func(a, b *delivery) int { return cmp.Compare(a.Seq, b.Seq) })
	}
	return err
}

// SetTargets replaces the targets. What waits for one that is gone is dropped; what waits for one that was changed goes to where it is now.
// An Invalid error changes nothing.
func (n *Notifier) SetTargets(targets []Target) error {
	if len(targets) > maxTargets {
		return invalid("%d targets; at most %d are allowed", len(targets), maxTargets)
	}
	names := map[string]bool{}
	for i := range targets {
		if err := targets[i].Check(); err != nil {
			return err
		}
		if names[targets[i].Name] {
			return invalid("two targets are called %s", targets[i].Name)
		}
		names[targets[i].Name] = true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	changes := []Change{cursorChange(n.cursor)}
	for name, t := range n.targets {
		if names[name] {
			continue
		}
		changes = append(changes, Change{Key: stateKey + name})
		for _, d := range t.queue {
			changes = append(changes, Change{Key: d.key()})
		}
	}
	if err := n.o.Store.Apply(changes); err != nil {
		return fmt.Errorf("set notification targets: %w", err)
	}
	next := map[string]*target{}
	for _, c := range targets {
		t := n.targets[c.Name]
		if t == nil {
			t = &target{}
		}
		t.Target = c
		next[c.Name] = t
	}
	n.targets = next
	n.wake()
	return nil
}

// Cursor returns the number of the last event that Accept took: where to go on after a restart. Events that no target wanted may come again.
func (n *Notifier) Cursor() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cursor
}

// Configure changes what New was told: the appliance's name in messages, the zone of windows, digests and times in texts, and when to
// tell again of an alarm.
func (n *Notifier) Configure(site string, zone *time.Location, remind time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if zone == nil {
		zone = time.UTC
	}
	n.o.Site, n.o.Zone, n.o.Remind, n.env.site = site, zone, remind, site
	n.wake()
}

// Skip passes over the events with numbers up to seq: a Notifier that is new does not tell what is long past.
func (n *Notifier) Skip(seq uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cursor = max(n.cursor, seq)
}

// Alarms lists the open alarms by key.
func (n *Notifier) Alarms() []Alarm {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []Alarm
	for _, a := range n.alarms {
		out = append(out, *a)
	}
	slices.SortFunc(out, func(a, b Alarm) int { return cmp.Compare(a.Key, b.Key) })
	return out
}

// Accept takes one event. seq numbers events in ascending order, so that after a restart events that were taken before are passed over; 0 is
// for events without number. When it returns nil, the event's messages are in the store; after an error nothing of the event is.
func (n *Notifier) Accept(seq uint64, e holdfast.Event) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if seq != 0 && seq <= n.cursor {
		return nil
	}
	tx := n.begin()
	tx.cursor = max(seq, n.cursor)
	tx.take(e)
	return tx.commit()
}

// Sweep takes all that a check of one kind found, as Missed and Stale return it: alarms of the kind, those whose key begins with kind and a
// slash, that are open but not among the events are cleared: what they were about is gone.
func (n *Notifier) Sweep(kind string, events []holdfast.Event) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	seen := map[string]bool{}
	for _, e := range events {
		key, _ := alarmOf(e)
		seen[key] = true
		if err := n.one(e); err != nil {
			return err
		}
	}
	var gone []string
	for key := range n.alarms {
		if strings.HasPrefix(key, kind+"/") && !seen[key] {
			gone = append(gone, key)
		}
	}
	slices.Sort(gone)
	for _, key := range gone {
		a := n.alarms[key]
		if err := n.one(Clear(holdfast.Event{Type: a.Type, Text: "no longer watched"}, key)); err != nil {
			return err
		}
	}
	return nil
}

func (n *Notifier) one(e holdfast.Event) error {
	tx := n.begin()
	tx.take(e)
	return tx.commit()
}

// wake makes Run look again.
func (n *Notifier) wake() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}
