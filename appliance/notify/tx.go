package notify

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// tx gathers the changes of one step, so that memory and store change together or not at all. The caller has the Notifier's lock.
type tx struct {
	n      *Notifier
	now    time.Time
	cursor uint64
	seq    uint64
	alarms map[string]*Alarm // nil: cleared
	parts  map[string]*part
	drop   []*delivery
	add    []*delivery
}

// part is a target's state and queue as they will be.
type part struct {
	t     *target
	state state
	queue []*delivery
}

func (n *Notifier) begin() *tx {
	return &tx{n: n, now: n.o.Clock.Now(), cursor: n.cursor, seq: n.seq, alarms: map[string]*Alarm{}, parts: map[string]*part{}, drop: slices.Clone(n.owed)}
}

func (tx *tx) part(t *target) *part {
	p := tx.parts[t.Name]
	if p == nil {
		p = &part{t, t.state, slices.Clone(t.queue)}
		tx.parts[t.Name] = p
	}
	return p
}

func (d *delivery) key() string { return fmt.Sprintf("%s%020d", queueKey, d.Seq) }

func cursorChange(c uint64) Change { return Change{cursorKey, fmt.Append(nil, c)} }

// commit stores and then shows the changes. A step that only counted an event is not stored: the event does nothing a second time either.
func (tx *tx) commit() error {
	n := tx.n
	if len(tx.alarms)+len(tx.parts)+len(tx.drop) == 0 {
		n.cursor = tx.cursor
		return nil
	}
	changes := []Change{cursorChange(tx.cursor)}
	put := func(key string, v any) error {
		b, err := json.Marshal(v)
		changes = append(changes, Change{key, b})
		return err
	}
	for key, a := range tx.alarms {
		if a == nil {
			changes = append(changes, Change{Key: alarmKey + key})
		} else if err := put(alarmKey+key, a); err != nil {
			return err
		}
	}
	for name, p := range tx.parts {
		if err := put(stateKey+name, p.state); err != nil {
			return err
		}
	}
	for _, d := range tx.drop {
		changes = append(changes, Change{Key: d.key()})
	}
	for _, d := range tx.add {
		if slices.Contains(tx.drop, d) { // queued and put out again in one step
			continue
		}
		if err := put(d.key(), d); err != nil {
			return err
		}
	}
	if err := n.o.Store.Apply(changes); err != nil {
		return fmt.Errorf("store notifications: %w", err)
	}
	n.cursor, n.seq, n.owed = tx.cursor, tx.seq, nil
	for key, a := range tx.alarms {
		if a == nil {
			delete(n.alarms, key)
		} else {
			n.alarms[key] = a
		}
	}
	for _, p := range tx.parts {
		p.t.state, p.t.queue = p.state, p.queue
	}
	n.wake()
	return nil
}

// take decides who is told of an event.
func (tx *tx) take(e holdfast.Event) {
	n := tx.n
	if e.Time.IsZero() {
		e.Time = tx.now.UTC()
	}
	key, s := alarmOf(e)
	was := n.alarms[key]
	switch {
	case s == Cleared && was == nil:
		return
	case s == Cleared:
		m := n.newMessage(&e, key, s, was)
		for _, name := range was.Told {
			if t := n.targets[name]; t != nil && !t.Disabled {
				tx.admit(t, m, was.Severity)
			}
		}
		tx.alarms[key] = nil
		return
	case s == Raised && was == nil && len(n.alarms) >= maxAlarms:
		key, s = "", Plain
	}
	tell := tx.wanting(&e)
	if s == Raised {
		if tell = tx.raise(&e, key, was, tell); len(tell) == 0 {
			return
		}
	}
	if len(tell) > 0 {
		m := n.newMessage(&e, key, s, nil)
		for _, t := range tell {
			tx.admit(t, m, e.Severity)
		}
	}
}

// wanting returns the targets whose rules match, by name.
func (tx *tx) wanting(e *holdfast.Event) []*target {
	local := e.Time.In(tx.n.o.Zone)
	var out []*target
	for _, t := range tx.n.targets {
		// That a target fails is not told to itself.
		self := (e.Type == EventFailed || e.Type == EventDropped) && e.Fields["target"] == t.Name
		if !t.Disabled && !self && wanted(t.Rules, e, local) {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b *target) int { return compareNames(a.Name, b.Name) })
	return out
}

// raise notes an alarm and returns those who have not been told of it: at this severity, or for as long as Remind.
func (tx *tx) raise(e *holdfast.Event, key string, was *Alarm, wanting []*target) []*target {
	a := Alarm{Key: key, Raised: e.Time}
	if was != nil {
		a = *was
	}
	again := was == nil || e.Severity > was.Severity || tx.n.o.Remind > 0 && tx.now.Sub(was.Last) >= tx.n.o.Remind
	var tell []*target
	told := slices.Clone(a.Told)
	for _, t := range wanting {
		known := slices.Contains(told, t.Name)
		if again || !known {
			tell = append(tell, t)
		}
		if !known {
			told = append(told, t.Name)
		}
	}
	if was == nil || len(tell) > 0 {
		a.Type, a.Severity, a.Text, a.Last, a.Told = e.Type, max(a.Severity, e.Severity), clipText(e.Text, maxField), tx.now, told
		tx.alarms[key] = &a
	}
	return tell
}
