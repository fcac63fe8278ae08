package standard

import (
	"context"
	"io"

	"github.com/holdfast-backup/holdfast/pools/blob"
)

// readFull fills p from off; an object that is too short is Corrupt.
func readFull(r io.ReaderAt, p []byte, off int64) error { return blob.ReadFull(r, p, off, "object") }

// alive is the beginning of every method: the error is Cancelled once the context has ended.
func alive(ctx context.Context, op string) error { return blob.Cancelled(ctx, op) }
