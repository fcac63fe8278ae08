package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) vhdxCmd() *cobra.Command {
	return cli.Group("vhdx", "Look at and convert virtual hard disk files", a.vhdxInfoCmd(), a.vhdxCheckCmd(), a.vhdxMapCmd(), a.vhdxConvertCmd())
}

// diskInfo is what vhdx info prints.
type diskInfo struct {
	Format         string          `json:"format"`
	Subformat      string          `json:"subformat"`
	Size           int64           `json:"size"`
	BlockSize      uint32          `json:"block_size"`
	LogicalSector  uint32          `json:"logical_sector"`
	PhysicalSector uint32          `json:"physical_sector"`
	DiskID         holdfast.DiskID `json:"disk_id"`
	DataWriteGUID  holdfast.ID     `json:"data_write_guid"`
	Chain          []string        `json:"chain"`
	Allocated      int64           `json:"allocated"`
}

func (a *app) vhdxInfoCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "info FILE",
		Short: "Describe a VHDX or VHD and its parents",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := vhdx.Open(args[0])
			if err != nil {
				return err
			}
			i := d.Info()
			es, err := d.Allocated()
			if err = errors.Join(err, d.Close()); err != nil {
				return err
			}
			v := diskInfo{i.Format, i.Subformat, i.Size, i.BlockSize, i.LogicalSector, i.PhysicalSector, i.DiskID, i.DataWriteGUID, i.Chain, es.Total()}
			return a.print(v, func(w io.Writer) {
				fmt.Fprintf(w, "format\t%s, %s\nsize\t%s (%d)\nmay hold data\t%s\nblock\t%s\nsector\t%d logical, %d physical\ndisk id\t%s\n",
					i.Format, i.Subformat, cli.Size(i.Size), i.Size, cli.Size(es.Total()), cli.Size(int64(i.BlockSize)), i.LogicalSector, i.PhysicalSector, i.DiskID)
				for n, f := range i.Chain {
					fmt.Fprintf(w, "file %d\t%s\n", n, cli.Clean(f))
				}
			})
		},
	}
}

func (a *app) vhdxCheckCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Verify every rule of the format, for the file and its parents",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := vhdx.Check(args[0])
			if err != nil {
				return err
			}
			err = a.print(r, func(w io.Writer) {
				for _, p := range r.Problems {
					fmt.Fprintf(w, "problem\t%s\n", cli.Clean(p))
				}
				for _, n := range r.Notes {
					fmt.Fprintf(w, "note\t%s\n", cli.Clean(n))
				}
				if len(r.Problems) == 0 {
					fmt.Fprintln(w, "no problem found")
				}
			})
			if err == nil && len(r.Problems) > 0 {
				err = holdfast.Errorf(holdfast.Corrupt, "check "+args[0], "%d problems", len(r.Problems)).Advise("restore the disk from a backup")
			}
			return err
		},
	}
}

func (a *app) vhdxMapCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "map FILE",
		Short: "List the ranges that may hold data; the rest reads as zeros",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := vhdx.Open(args[0])
			if err != nil {
				return err
			}
			es, err := d.Allocated()
			if err = errors.Join(err, d.Close()); err != nil {
				return err
			}
			if es == nil {
				es = holdfast.Extents{}
			}
			return a.print(es, func(w io.Writer) {
				fmt.Fprintln(w, "OFFSET\tLENGTH")
				for _, e := range es {
					fmt.Fprintf(w, "%d\t%d\n", e.Off, e.Len)
				}
			})
		},
	}
}
