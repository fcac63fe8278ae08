package notify

import (
	"maps"

	"github.com/holdfast-backup/holdfast"
)

// Types of events that this package makes or that are made for it.
const (
	EventMissedRun holdfast.EventType = "run-missed"            // a job did not start when it should have
	EventStale     holdfast.EventType = "vm-not-backed-up"      // a VM has no recent good point
	EventFailed    holdfast.EventType = "notification-failed"   // a target cannot be reached, or can again
	EventDropped   holdfast.EventType = "notification-given-up" // a message was never accepted
	EventSummary   holdfast.EventType = "notifications-held"    // stands for many: flood control
	EventDigest    holdfast.EventType = "notifications-digest"  // stands for many: a digest
	EventTest      holdfast.EventType = "notification-test"     // asked for by an admin
)

// Fields by which an event raises or clears an alarm.
const (
	FieldAlarm = "alarm"       // the alarm's key
	FieldState = "alarm-state" // Raised or Cleared
)

// State is what a message says of an alarm.
type State string

const (
	Plain   State = "" // no alarm
	Raised  State = "raised"
	Cleared State = "cleared"
)

const maxKey = 256 // bytes of an alarm's key that count

// Raise returns e as one that raises the alarm of the key. Events with the same key are the same alarm until it is cleared.
func Raise(e holdfast.Event, key string) holdfast.Event { return withAlarm(e, key, Raised) }

// Clear returns e as one that clears the alarm of the key. Where it is not raised, nobody is told.
func Clear(e holdfast.Event, key string) holdfast.Event { return withAlarm(e, key, Cleared) }

func withAlarm(e holdfast.Event, key string, s State) holdfast.Event {
	fields := maps.Clone(e.Fields)
	if fields == nil {
		fields = map[string]string{}
	}
	fields[FieldAlarm], fields[FieldState] = key, string(s)
	e.Fields = fields
	return e
}

// alarmOf returns an event's alarm: what its fields say, else what its type implies.
func alarmOf(e holdfast.Event) (key string, s State) {
	key, s = e.Fields[FieldAlarm], State(e.Fields[FieldState])
	switch {
	case key != "" && (s == Raised || s == Cleared):
	case e.Type == holdfast.EventHostOffline && e.Fields["id"] != "":
		key, s = "host/"+e.Fields["id"], Raised
	case e.Type == holdfast.EventHostOnline && e.Fields["id"] != "":
		key, s = "host/"+e.Fields["id"], Cleared
	default:
		return "", Plain
	}
	return key[:min(len(key), maxKey)], s
}
