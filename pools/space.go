package pools

import (
	"context"

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
	Reclaimable int64     `json:"reclaimable"` // needed by nobody: what collecting gives back, what lies in well filled containers later
	Records     int64     `json:"records"`     // the sets' own records
	VMs         []VMSpace `json:"vms"`         // by name
	Containers  int       `json:"containers"`
	Liveness    [10]int   `json:"liveness"`      // containers by the share of their chunks that is live: 0-10 %, 10-20 %, …, 90-100 %
	Jumps       float64   `json:"fragmentation"` // of the newest set of each VM: the share of its pieces that do not follow the piece before in a container
}

// VMSpace is what one VM's sets take by themselves; what several VMs need is in Live only.
type VMSpace struct {
	ID      holdfast.VMID `json:"id"`
	Name    string        `json:"name"`
	Sets    int           `json:"sets"`
	Logical int64         `json:"logical"`
	Unique  int64         `json:"unique"` // stored bytes that only this VM needs: what deleting all its sets would give back
}
