package pools

import "context"

// A Recompressor is an optional interface of a Pool: it writes what has come to stay with fewer bytes, when there is time for it.
type Recompressor interface {
	// Recompress encodes stored chunks again, as well as can be. It may run beside sessions and reads, can be interrupted by ctx or a
	// crash at any point, and goes on where it was. Busy while the pool is collected.
	Recompress(ctx context.Context, o RecompressOptions) (RecompressReport, error)
}

// RecompressOptions steers a Recompress.
type RecompressOptions struct {
	Limit    int64                 // stop after so many stored bytes were read; 0: do everything
	Progress func(done, all int64) // stored bytes; may be nil
}

// RecompressReport is what a Recompress did.
type RecompressReport struct {
	Containers int   `json:"containers"` // written anew
	Before     int64 `json:"before"`     // bytes they had
	After      int64 `json:"after"`      // bytes they have
	Left       int64 `json:"left"`       // bytes of containers that are still to be done
}
