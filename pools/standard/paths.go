package standard

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync/atomic"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/blob"
)

const (
	maxPaths = 4096 // of one pool: sanity bound of numbers in records
	// An increment goes where its parent is while so much room is left there: fewer sets depend on two paths then.
	roomEnough = 4 * fileTarget
)

// A Path is one of the places over which a pool's sets are spread.
type Path struct {
	Label string     // what the admin calls it: the folder
	Store blob.Store // nil if it is not reachable
	Err   error      // why Store is nil
	Quota int64      // bytes that the pool may take there; 0: no bound
}

// A poolPath is a path of an open pool.
type poolPath struct {
	Path
	number  uint16
	lost    error        // why it is not there, or nil; never changes while the pool is open
	taken   atomic.Int64 // bytes of objects, as far as records were read
	markers []string     // folders with a marker; used while opening
}

// lostError is what is said about a path that is not there.
func (pa *poolPath) lostError(op string) error {
	return holdfast.Errorf(holdfast.Offline, op, "path %d of the pool (%s) is not there: sets on it are not listed and cannot be restored, all others can: %w", pa.number, pa.Label, pa.lost).
		Advise("look whether the disk is connected and mounted, then open the pool again; if it is lost for good, say so with \"forget\"")
}

// label returns what a path is called.
func (p *Pool) label(number uint16) string {
	if int(number) < len(p.paths) && p.paths[number] != nil {
		return p.paths[number].Label
	}
	return "given up"
}

// anyLost returns an error about the first path that is not there, or nil.
func (p *Pool) anyLost(op string) error {
	for _, pa := range p.paths {
		if pa != nil && pa.lost != nil {
			return pa.lostError(op)
		}
	}
	return nil
}

// needOne refuses a pool without any path.
func (p *Pool) needOne() error {
	for _, pa := range p.paths {
		if pa != nil && pa.lost == nil {
			return nil
		}
	}
	return p.anyLost("open pool")
}

// tellLost says once for each path that it is not there.
func (p *Pool) tellLost() {
	for _, pa := range p.paths {
		if pa != nil && pa.lost != nil {
			p.listener.Emit(holdfast.Event{Type: holdfast.EventMediaNeeded, Severity: holdfast.Alarm,
				Text:   fmt.Sprintf("path %s of the pool is not there; sets on it cannot be restored, and nothing is removed until it is back", pa.Label),
				Fields: map[string]string{"pool": p.sb.Pool.String(), "path": pa.Label}})
		}
	}
}

// used counts bytes that objects on a path take, or gave back.
func (p *Pool) used(number uint16, bytes int64) {
	if int(number) < len(p.paths) && p.paths[number] != nil {
		p.paths[number].taken.Add(bytes)
	}
}

// take counts bytes that are going to be written, or fails with NoSpace where the quota does not allow them.
func (pa *poolPath) take(bytes int64) error {
	if now := pa.taken.Add(bytes); pa.Quota > 0 && now > pa.Quota {
		pa.taken.Add(-bytes)
		return holdfast.Errorf(holdfast.NoSpace, "write to pool", "path %s would have %d bytes, and its quota is %d", pa.Label, now, pa.Quota).
			Advise("delete sets, raise the quota, or add a path")
	}
	return nil
}

// room returns the bytes that may still be written to a path.
func (pa *poolPath) room(ctx context.Context) (int64, error) {
	free, _, err := pa.Store.Usage(ctx)
	if err != nil {
		return 0, err
	}
	if free < 0 {
		free = math.MaxInt64
	}
	if pa.Quota > 0 {
		free = min(free, pa.Quota-pa.taken.Load())
	}
	return free, nil
}

// choose returns the path to write to: the preferred one while it has room enough, else the one with the most room.
func (p *Pool) choose(ctx context.Context, prefer *poolPath) (*poolPath, error) {
	var best *poolPath
	most := int64(0)
	var problems []string
	for _, pa := range p.paths {
		if pa == nil || pa.lost != nil {
			continue
		}
		n, err := pa.room(ctx)
		if err != nil {
			if err := alive(ctx, "choose path"); err != nil {
				return nil, err
			}
			problems = append(problems, fmt.Sprintf("%s: %v", pa.Label, err))
			continue
		}
		if pa == prefer && n >= roomEnough {
			return pa, nil
		}
		if n > most || n == most && pa == prefer && n > 0 {
			best, most = pa, n
		}
	}
	if best == nil {
		if len(problems) > 0 {
			return nil, holdfast.Errorf(holdfast.Offline, "choose path", "no path of the pool can be written: %s", strings.Join(problems, "; "))
		}
		return nil, holdfast.Errorf(holdfast.NoSpace, "choose path", "every path of the pool is full or has reached its quota").
			Advise("delete sets, raise a quota, or add a path")
	}
	return best, nil
}

// A capacity is what the paths hold together.
type capacity struct {
	free, size int64 // bytes; size is 0 where no medium says
}

// space adds up the paths that are there. A quota bounds both what is free and the size.
func (p *Pool) space(ctx context.Context) (capacity, error) {
	var c capacity
	for _, pa := range p.paths {
		if pa == nil || pa.lost != nil {
			continue
		}
		free, size, err := pa.Store.Usage(ctx)
		if err != nil {
			return c, err
		}
		if pa.Quota > 0 {
			left := max(pa.Quota-pa.taken.Load(), 0)
			if free < 0 || free > left {
				free = left
			}
			if size < 0 || size > pa.Quota {
				size = pa.Quota
			}
		}
		c.free, c.size = c.free+max(free, 0), c.size+max(size, 0)
	}
	return c, nil
}
