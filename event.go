package holdfast

import "time"

// Severity orders events by how soon somebody should look.
type Severity uint8

const (
	Info Severity = iota
	Warning
	Alarm
)

var severityNames = [...]string{"info", "warning", "alarm"}

func (s Severity) String() string { return severityNames[min(s, Alarm)] }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Severity) UnmarshalText(text []byte) error {
	for i, n := range severityNames {
		if n == string(text) {
			*s = Severity(i)
			return nil
		}
	}
	return Errorf(Invalid, "parse severity", "%q is none of %v", clip(text), severityNames)
}

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// EventType names what happened. Part of the API: append only.
type EventType string

const (
	EventSetCommitted    EventType = "set-committed"
	EventSetDeleted      EventType = "set-deleted"
	EventRunFinished     EventType = "run-finished"
	EventHostOnline      EventType = "host-online"
	EventHostOffline     EventType = "host-offline"
	EventHostEnrolled    EventType = "host-enrolled"
	EventRefused         EventType = "connection-refused" // a peer was turned away at the door
	EventChunkCorrupt    EventType = "chunk-corrupt"
	EventPoolNearFull    EventType = "pool-near-full"
	EventCollected       EventType = "pool-collected"
	EventContainerSealed EventType = "container-sealed"
	EventMediaNeeded     EventType = "media-needed"
	EventTape            EventType = "tape"          // something about a drive or cartridge of a tape pool
	EventLabelChanged    EventType = "label-changed" // of a host or a VM: protected, or not any more
)

// An Event is a noteworthy fact. Engines do not log or print: they hand events to a Listener.
type Event struct {
	Time     time.Time         `json:"time"` // set by the listener where it is zero
	Type     EventType         `json:"type"`
	Severity Severity          `json:"severity"`
	Text     string            `json:"text"`             // one sentence for a person
	Fields   map[string]string `json:"fields,omitempty"` // names and ids for a program
}

// A Listener receives events; it must return quickly and be safe for concurrent use. The nil Listener drops them.
type Listener func(Event)

// Emit hands e to the listener, if there is one.
func (l Listener) Emit(e Event) {
	if l != nil {
		l(e)
	}
}
