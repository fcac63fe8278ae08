package appliance

import (
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/pools/dedup"
	"github.com/holdfast-backup/holdfast/pools/object"
	"github.com/holdfast-backup/holdfast/pools/standard"
)

// Drivers is the one table of the kinds of pool there are, but for tape pools: those share the daemon's open libraries.
func Drivers() pools.Registry {
	return pools.Registry{dedup.Driver(), standard.Driver(), object.Driver()}
}
