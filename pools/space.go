package pools

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// An Explainer says where a pool's bytes are. It reads every set's map, so it is for who asks, not for every listing.
type Explainer interface {
	Explain(ctx context.Context) (Space, error)
}

// Space is where a pool's stored bytes are. Live, Pinned, Reclaimable and Records sum up to Stored, but for rounding: a chunk's share of its
// container is by its plaintext.
type Space struct {
	Stored      int64     `json:"stored"`
	Live        int64     `json:"live"`        // needed by sets
	Pinned      int64     `json:"pinned"`      // of deleted sets that are still being read, and of sessions under way
	Reclaimable int64     `json:"reclaimable"` // needed by nobody: what collecting gives back; Waits says when
	Records     int64     `json:"records"`     // the sets' own records
	PinnedBy    []Pin     `json:"pinned_by"`   // what Pinned is kept for
	Waits       []Wait    `json:"waits"`       // Reclaimable by when it comes back: the soonest first
	VMs         []VMSpace `json:"vms"`         // by name
	Containers  int       `json:"containers"`
	Liveness    [10]int   `json:"liveness"`      // containers by the share of their chunks that is live: 0-10 %, 10-20 %, …, 90-100 %
	Jumps       float64   `json:"fragmentation"` // of the newest set of each VM: the share of its pieces that do not follow the piece before in a container
}

// A Pin is a use that keeps bytes which no set needs, or may need.
type Pin struct {
	Set holdfast.SetID `json:"set"`
	VM  string         `json:"vm,omitempty"` // its name, where that is known
	Use PinUse         `json:"use"`
}

// PinUse says what a pin is.
type PinUse string

const (
	PinReading PinUse = "reading" // a deleted set is still being read, or is the parent of one being written
	PinWriting PinUse = "writing" // a set is being written
)

// A Wait is reclaimable bytes and what they wait for.
type Wait struct {
	Bytes int64     `json:"bytes"`
	When  WaitWhen  `json:"when"`
	Until time.Time `json:"until,omitzero"` // for WaitLock: when the last of it is free
}

// WaitWhen says when bytes that nobody needs come back.
type WaitWhen string

const (
	WaitCollect WaitWhen = "next-collect"      // the next collect
	WaitTwice   WaitWhen = "collect-after"     // the collect after the next: a bucket's containers go when two in a row find them needless
	WaitSparse  WaitWhen = "container-sparser" // a collect once less of the containers they lie in is needed
	WaitPin     WaitWhen = "pin-ends"          // a collect once the container they lie in is not pinned any more
	WaitLock    WaitWhen = "lock-ends"         // a collect once the server's Object Lock lets their containers go
)

// AddWait counts bytes to what waits for the same.
func (s *Space) AddWait(bytes int64, when WaitWhen, until time.Time) {
	if bytes <= 0 {
		return
	}
	for i := range s.Waits {
		if w := &s.Waits[i]; w.When == when {
			w.Bytes += bytes
			if until.After(w.Until) {
				w.Until = until
			}
			return
		}
	}
	s.Waits = append(s.Waits, Wait{bytes, when, until})
	slices.SortStableFunc(s.Waits, func(a, b Wait) int { return cmp.Compare(waitRank(a.When), waitRank(b.When)) })
}

func waitRank(w WaitWhen) int {
	return slices.Index([]WaitWhen{WaitCollect, WaitTwice, WaitSparse, WaitPin, WaitLock}, w)
}

// VMSpace is what one VM's sets take by themselves; what several VMs need is in Live only.
type VMSpace struct {
	ID      holdfast.VMID `json:"id"`
	Name    string        `json:"name"`
	Sets    int           `json:"sets"`
	Logical int64         `json:"logical"`
	Unique  int64         `json:"unique"` // stored bytes that only this VM needs: what deleting all its sets would give back
}
