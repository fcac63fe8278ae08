package wire

import (
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// Type is the type of a frame. Numbers are on the wire: append only, and a new one needs a new version line (version.go).
type Type uint8

// Frames of the link itself (link.go): they carry no sequence number and are handled below the messages.
const (
	TypeHello   Type = 1 // dialer → accepter: versions, a new link or the one to resume
	TypeWelcome Type = 2 // accepter → dialer: the version chosen, where to go on
	TypeAck     Type = 3 // either: highest sequence number consumed
	TypePing    Type = 4 // either, when idle
	TypeRefuse  Type = 5 // either, instead of Welcome or at any later time: a Failure, then close; the link is over
	TypeClose   Type = 6 // either: everything it sent is acknowledged and it reads no more; the link is over
)

// Messages. Each is ordered, acknowledged and replayed over a broken connection.
const (
	TypeBegin     Type = 16 // agent: which task. JSON Begin
	TypeBegan     Type = 17 // appliance: what the pool wants and knows. JSON Began
	TypeStart     Type = 18 // agent: the draft manifest. JSON holdfast.Manifest
	TypeAsk       Type = 19 // agent: which of these chunks are missing?
	TypeHave      Type = 20 // appliance: the answer to an Ask
	TypePut       Type = 21 // agent: a group of new chunks
	TypePlace     Type = 22 // agent: what extents hold
	TypeDiskDone  Type = 23 // agent: nothing follows on this channel
	TypeCommit    Type = 24 // agent: make the set durable. JSON holdfast.Manifest
	TypeCommitted Type = 25 // appliance: it is. JSON Committed
	TypeTracking  Type = 26 // agent: the change tracking ids that belong to the set. JSON Tracking
	TypeTracked   Type = 27 // appliance: they are recorded. Empty
	TypeOpenSet   Type = 32 // agent: which restore task. JSON Begin
	TypeSetOpened Type = 33 // appliance: what will be delivered. JSON SetOpened
	TypeWant      Type = 34 // agent: extents of one disk, at most once per channel at a time
	TypeParcel    Type = 35 // appliance: a group and where its bytes go
	TypeDelivered Type = 36 // appliance: everything wanted on this channel was sent
	TypeFail      Type = 48 // either: the task is over. JSON Failure
	TypeDone      Type = 49 // either: the exchange ended well; no answer. Empty
)

// A Message is one unit of the data protocol. Channel is the disk's index in the manifest for messages about a disk, else 0.
// Body is one of the structs below, by value, by Type (Start and Commit carry a holdfast.Manifest, Put a *holdfast.Group, Parcel a
// *holdfast.Parcel, OpenSet a Begin, Fail a Failure); nil for empty messages.
//
// The body of a received message may lie in a pooled buffer: it is the receiver's until Release.
type Message struct {
	Type    Type
	Channel uint16
	Body    any

	f *frame // what Body lies in; nil for messages that were not received
}

// Release gives the buffers of a received message back; Body must not be used after it. It is called at most once over all copies
// of the message, from any goroutine. A message that is never released is left to the garbage collector.
func (m *Message) Release() {
	f := m.f
	m.f = nil
	if p, ok := m.Body.(*holdfast.Parcel); ok {
		p.Release() // a parcel owns its frame, so that it can be handed on alone
		return
	}
	if f != nil {
		m.Body = nil
		f.free()
	}
}

type (
	// Begin opens a backup (TypeBegin) or a restore (TypeOpenSet) for a task given to this agent on the control channel.
	Begin struct {
		Task holdfast.TaskID `json:"task"`
	}
	// Began tells the agent how to read and cut, and what there is to build on.
	Began struct {
		Set         holdfast.SetID             `json:"set"` // id of the set to be written
		Chunking    holdfast.Chunking          `json:"chunking"`
		DomainKey   []byte                     `json:"domain_key"`       // 32 bytes
		Compression string                     `json:"compression"`      // off, fast, default, better
		Streams     int                        `json:"streams"`          // disks open at once; 0: no bound
		Parent      *holdfast.Manifest         `json:"parent,omitempty"` // newest set of this VM in this pool, without attachments
		Tokens      map[holdfast.DiskID]string `json:"tokens,omitempty"` // change tracking ids of Parent
		Full        bool                       `json:"full"`             // read everything
	}
	// Committed is sent when the set is durable in pool and catalog.
	Committed struct {
		Manifest holdfast.Manifest `json:"manifest"`
	}
	// Tracking carries the ids that the hypervisor gave when the checkpoint became a reference point.
	Tracking struct {
		Set    holdfast.SetID             `json:"set"`
		Tokens map[holdfast.DiskID]string `json:"tokens"`
	}
	// SetOpened answers OpenSet.
	SetOpened struct {
		Manifest  holdfast.Manifest `json:"manifest"`
		DomainKey []byte            `json:"domain_key"`
	}
	// Failure is an error as it travels.
	Failure struct {
		Kind    holdfast.Kind `json:"kind"`
		Message string        `json:"message"`
		Hint    string        `json:"hint,omitempty"`
	}
	// Ask asks which chunks the pool lacks; answered by a Have with the same Batch.
	Ask struct {
		Batch   uint32
		Digests []holdfast.Digest // 1 to MaxAsk
	}
	// Have answers Ask: Missing has one entry per digest asked.
	Have struct {
		Batch   uint32
		Missing []bool
	}
	// Place carries map entries in ascending order.
	Place struct {
		Refs []holdfast.Ref // 1 to MaxRefs
	}
	// Want asks for extents of a disk (a normal list, 1 to MaxWant entries).
	Want struct {
		Extents holdfast.Extents
	}
)

// Bounds of single messages.
const (
	MaxAsk    = 4096
	MaxRefs   = 8192
	MaxWant   = 65536
	MaxPlaces = 8192 // in one Parcel
)

// AsError turns a failure received into an error of the same kind.
func (f Failure) AsError() *holdfast.Error {
	return &holdfast.Error{Kind: f.Kind, Hint: f.Hint, Err: textError(f.Message)}
}

// FailureOf makes an error fit to travel: valid text of a bounded length.
func FailureOf(err error) Failure {
	return Failure{Kind: holdfast.KindOf(err), Message: clip(err.Error()), Hint: clip(holdfast.HintOf(err))}
}

// maxText bounds each text of a Failure, in bytes. JSON may need six bytes for one; appendFailure clips further where it must.
const maxText = 1 << 10

func clip(s string) string { return clipTo(s, maxText) }

func clipTo(s string, n int) string {
	if len(s) > n {
		s = s[:n-len("…")] + "…"
	}
	return strings.ToValidUTF8(s, "")
}

type textError string

func (e textError) Error() string { return string(e) }
