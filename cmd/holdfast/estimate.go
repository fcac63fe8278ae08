package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
	"github.com/holdfast-backup/holdfast/ingest/chunk"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

// maxSample bounds --sample: of a disk of 1 TiB a thousandth is still 65 pieces.
const maxSample = 1000

func (a *app) estimateCmd() *cobra.Command {
	var chunking, compression string
	var sample int
	cmd := &cobra.Command{
		Use:   "estimate FILE...",
		Short: "Say what disks would take in a dedup pool",
		Long: "Say what disks would take in a dedup pool, before there is one. The files are raw images, VHDX or VHD; they are only read. Several files share\n" +
			"what they have in common, as VMs in one pool do. Nothing of this needs a daemon.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ch, err := holdfast.ParseChunking(chunking)
			if err != nil {
				return err
			}
			if ch.Mode != holdfast.ModeFixed {
				ch.Seed = 1 // pools have one each; it says where cuts are, not how many
			}
			level, err := chunk.ParseLevel(compression)
			if err != nil {
				return err
			}
			if sample < 1 || sample > maxSample {
				return cli.UsageError(c, fmt.Errorf("--sample is a number from 1 to %d", maxSample))
			}
			x, err := chunk.NewEstimator(ch, level, 1, sample)
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := a.estimate(c.Context(), x, name); err != nil {
					return err
				}
			}
			e := x.Result()
			return a.print(e, func(p *printer) { printEstimate(p, e) })
		},
	}
	cmd.Flags().StringVar(&chunking, "chunking", "", "adaptive, variable or fixed-64K to fixed-512K; as the pool's (default adaptive)")
	cmd.Flags().StringVar(&compression, "compression", "default", "off, fast, default, better or best")
	cmd.Flags().IntVar(&sample, "sample", 1, "look at one part of 16 MiB in so many: faster, but repetitions far apart are missed")
	return cmd
}

// estimate adds one file.
func (a *app) estimate(ctx context.Context, x *chunk.Estimator, name string) (err error) {
	var r io.ReaderAt
	var size int64
	data := holdfast.Extents{}
	switch strings.ToLower(filepath.Ext(name)) {
	case ".vhdx", ".vhd", ".avhdx":
		d, err := vhdx.Open(name)
		if err != nil {
			return err
		}
		defer func() { _ = d.Close() }() // only read
		if data, err = d.Allocated(); err != nil {
			return err
		}
		r, size = d, d.Info().Size
	default:
		f, err := os.Open(name)
		if err != nil {
			return inputError(name, err)
		}
		defer func() { _ = f.Close() }() // only read
		if size, err = f.Seek(0, io.SeekEnd); err != nil {
			return inputError(name, err)
		}
		r, data = f, holdfast.Extents{{Off: 0, Len: size}}
	}
	tty := !a.json && terminal(a.errw)
	err = x.Add(ctx, r, size, data, func(done, all int64) {
		if tty {
			fmt.Fprintf(a.errw, "\r\x1b[K%s: %.0f %%", name, percent(done, all))
		}
	})
	if tty {
		fmt.Fprint(a.errw, "\r\x1b[K")
	}
	return err
}

// inputError classifies what the system says about a file that is read.
func inputError(name string, err error) error {
	kind := holdfast.Invalid
	switch {
	case errors.Is(err, os.ErrNotExist):
		kind = holdfast.NotExist
	case errors.Is(err, os.ErrPermission):
		kind = holdfast.Permission
	}
	return holdfast.Errorf(kind, "read "+name, "%w", err)
}

func printEstimate(p *printer, e chunk.Estimate) {
	p.row("size", cli.Size(e.Size))
	p.row("zeros and holes", cli.Size(e.Zero), fmt.Sprintf("%.0f %%", percent(e.Zero, e.Size)))
	p.row("data", cli.Size(e.Data))
	p.row("without repetitions", cli.Size(e.Unique), fmt.Sprintf("%d chunks", e.Chunks))
	p.row("stored", cli.Size(e.Stored), "compressed, with all overhead; the first backup")
	if e.Stored > 0 {
		p.row("ratio", ratio(float64(e.Size)/float64(e.Stored)), "of the size; "+ratio(float64(e.Data)/float64(e.Stored))+" of the data")
	}
}
