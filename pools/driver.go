package pools

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// A Driver is the code for one kind of pool. Drivers are listed in one table (appliance/drivers.go): no package registers itself.
type Driver struct {
	Kind string
	// Create initialises a new pool at the place that config names and leaves it closed. It refuses a place that is not empty (Exist)
	// and a config with unknown keys (Invalid). Durable when it returns.
	Create func(ctx context.Context, env Env, id holdfast.PoolID, config json.RawMessage) error
	// Open opens a pool made by Create. It refuses a pool that another process has open (Busy) and one of another id (Invalid).
	Open func(ctx context.Context, env Env, id holdfast.PoolID, config json.RawMessage) (Pool, error)
}

// Env is what a driver gets from the house. Drivers read neither the environment nor the wall clock themselves.
type Env struct {
	Clock    clock.Clock
	Listener holdfast.Listener
	StateDir string // a folder on the appliance's own disk for rebuildable state; may be lost at any time
}

// A Registry finds drivers by kind.
type Registry []Driver

// Find returns the driver of a kind, or NotExist naming the kinds there are.
func (r Registry) Find(kind string) (Driver, error) {
	i := slices.IndexFunc(r, func(d Driver) bool { return d.Kind == kind })
	if i < 0 {
		kinds := make([]string, len(r))
		for j, d := range r {
			kinds[j] = d.Kind
		}
		return Driver{}, holdfast.Errorf(holdfast.NotExist, "find pool driver", "no pool kind %q", kind).Advise("choose one of %v", kinds)
	}
	return r[i], nil
}

// DecodeConfig reads a driver's config strictly: an unknown key is Invalid, so that a typing error never means a default.
func DecodeConfig(raw json.RawMessage, into any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return holdfast.Errorf(holdfast.Invalid, "read pool config", "%w", err)
	}
	return nil
}
