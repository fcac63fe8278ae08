package catalog

import (
	"encoding/binary"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// EventRing is how many events are kept: the newest.
const EventRing = 10000

// A LoggedEvent is an event with its number, which counts up from 1 and never repeats.
type LoggedEvent struct {
	Seq   uint64         `json:"seq"`
	Event holdfast.Event `json:"event"`
}

// eventRecord is a LoggedEvent on the medium: the severity is its number there, which reads back whatever it is called.
type eventRecord struct {
	Seq      uint64             `json:"seq"`
	Time     time.Time          `json:"time"`
	Type     holdfast.EventType `json:"type"`
	Severity uint8              `json:"severity"`
	Text     string             `json:"text"`
	Fields   map[string]string  `json:"fields,omitempty"`
}

func (r eventRecord) event() LoggedEvent {
	return LoggedEvent{r.Seq, holdfast.Event{Time: r.Time, Type: r.Type, Severity: holdfast.Severity(r.Severity), Text: r.Text, Fields: r.Fields}}
}

func eventKey(seq uint64) []byte {
	return key(tEvent, binary.BigEndian.AppendUint64(nil, seq))
}

// AddEvent keeps an event and returns its number. The oldest goes when there are more than EventRing.
func (tx *Tx) AddEvent(e holdfast.Event) (uint64, error) {
	last, err := tx.LastEvent()
	if err != nil {
		return 0, err
	}
	seq := last + 1
	if err := put(tx, eventKind, eventKey(seq), &eventRecord{seq, e.Time, e.Type, uint8(e.Severity), e.Text, e.Fields}); err != nil {
		return 0, err
	}
	if seq > EventRing {
		tx.b.Delete(eventKey(seq - EventRing))
	}
	return seq, nil
}

// LastEvent returns the number of the newest event, 0 if there is none.
func (tx *Tx) LastEvent() (uint64, error) {
	for it, err := range tx.r.ScanBack(key(tEvent), after(key(tEvent))) {
		if err != nil {
			return 0, err
		}
		if len(it.Key) != 9 {
			return 0, holdfast.Errorf(holdfast.Corrupt, "read catalog", "an event has the key %x", it.Key).Advise(adviseRebuild)
		}
		return binary.BigEndian.Uint64(it.Key[1:]), nil
	}
	return 0, nil
}

// Events lists the events with numbers above since, oldest first.
func (tx *Tx) Events(since uint64, p Page) ([]LoggedEvent, Cursor, error) {
	if p.Cursor == "" && since > 0 {
		p.Cursor = makeCursor(eventKey(since))
	}
	return tx.events(p, false)
}

// NewestEvents lists the events, newest first.
func (tx *Tx) NewestEvents(p Page) ([]LoggedEvent, Cursor, error) {
	return tx.events(p, true)
}

func (tx *Tx) events(p Page, back bool) ([]LoggedEvent, Cursor, error) {
	recs, next, err := collect(p, all[eventRecord](tx, eventKind, key(tEvent), p.Cursor, back))
	out := make([]LoggedEvent, len(recs))
	for i, r := range recs {
		out[i] = r.event()
	}
	return out, next, err
}
