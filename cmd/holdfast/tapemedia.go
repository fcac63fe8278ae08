package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/tape/care"
	"github.com/holdfast-backup/holdfast/tape/ltfs"
)

func (a *app) tapeMediaList() *cobra.Command {
	return tapeSub("list LIBRARY", "List cartridges by bar code, without loading any", 1, func(c *cobra.Command, args []string) error {
		out, err := a.tapeShown(c.Context(), args[0])
		if err != nil {
			return err
		}
		s := out.Stock
		full := []care.Place{}
		for _, d := range s.Drives {
			if d.Full {
				full = append(full, care.Place{Kind: "drive", Element: d.Element, Full: true, Barcode: d.Barcode})
			}
		}
		for _, p := range s.Places {
			if p.Full {
				full = append(full, p)
			}
		}
		s.Places = full
		return a.print(full, func(p *printer) { printPlaces(p, s, false) })
	})
}

// tapeMedium loads a cartridge and reads what it is.
func (a *app) tapeMedium(ctx context.Context, library string, w api.TapeWork) (m care.Medium, err error) {
	err = a.tapeWork(ctx, library, "media-show", api.TapeWork{Cartridge: w.Cartridge, Drive: w.Drive}, &m)
	return m, err
}

func (a *app) tapeMediaShow() *cobra.Command {
	var drive string
	c := tapeSub("show LIBRARY CARTRIDGE", "Load a cartridge and read what it is", 2, func(c *cobra.Command, args []string) error {
		m, err := a.tapeMedium(c.Context(), args[0], api.TapeWork{Cartridge: args[1], Drive: drive})
		if err != nil {
			return err
		}
		return a.print(m, func(p *printer) { printMedium(p, m) })
	})
	c.Flags().StringVar(&drive, "drive", "", "serial number or address of the drive; without it, a free one")
	return c
}

func printMedium(p *printer, m care.Medium) {
	row := func(name, value string) {
		if value != "" {
			p.row(name, cli.Clean(value))
		}
	}
	row("bar code", m.Barcode)
	row("serial number", m.Serial)
	row("content", m.Content)
	row("label", m.ID)
	row("written as", m.Label)
	row("pool", strings.TrimSpace(m.Pool+" "+m.PoolID))
	if m.Content == care.Own {
		row("media set", fmt.Sprintf("%s, tape %d", m.Set, m.Seq))
	}
	if m.Content == care.LTFS {
		row("files", fmt.Sprint(m.Files))
	}
	if !m.Created.IsZero() {
		row("labelled", m.Created.Format(time.RFC3339))
	}
	if m.Capacity > 0 {
		row("free", cli.Size(int64(m.Remaining)<<20)+" of "+cli.Size(int64(m.Capacity)<<20))
	}
	if m.WORM {
		row("write once", "yes")
	}
	if m.Encrypted {
		row("encrypted", "yes")
	}
	for _, x := range m.Problems {
		row("PROBLEM", x)
	}
}

// tapeLoss reads what is on a cartridge, asks whether that may be lost, and puts into w what exactly.
func (a *app) tapeLoss(ctx context.Context, library string, w *api.TapeWork, yes bool) error {
	m, err := a.tapeMedium(ctx, library, *w)
	if err != nil || m.Content == care.Blank {
		return err
	}
	w.Expect = &care.Expect{ID: m.ID, Serial: m.Serial}
	return a.confirm(yes, m.Loss())
}

func (a *app) tapeMediaLabel() *cobra.Command {
	var w api.TapeWork
	var over, yes bool
	c := tapeSub("label LIBRARY CARTRIDGE", "Give a blank cartridge a label of its own", 2, func(c *cobra.Command, args []string) error {
		w.Cartridge = args[1]
		if over {
			if err := a.tapeLoss(c.Context(), args[0], &w, yes); err != nil {
				return err
			}
		}
		var m care.Medium
		if err := a.tapeWork(c.Context(), args[0], "media-label", w, &m); err != nil {
			return err
		}
		return a.print(m, func(p *printer) { printMedium(p, m) })
	})
	f := c.Flags()
	f.StringVar(&w.Format, "format", care.Own, "hft: a label of Holdfast's own format, of no pool yet; ltfs: an LTFS volume that other software reads")
	f.StringVar(&w.Volume, "volume", "", "name of the LTFS volume; without it, from the bar code")
	f.StringVar(&w.Drive, "drive", "", "serial number or address of the drive; without it, a free one")
	f.BoolVar(&over, "overwrite", false, "also if the cartridge is not blank; asks with what will be lost")
	f.BoolVar(&yes, "yes", false, "what --overwrite loses may be lost")
	return c
}

func (a *app) tapeMediaErase() *cobra.Command {
	var w api.TapeWork
	var yes bool
	c := tapeSub("erase LIBRARY CARTRIDGE", "Make a cartridge blank; reads what is on it first and says what will be lost", 2, func(c *cobra.Command, args []string) error {
		w.Cartridge = args[1]
		if err := a.tapeLoss(c.Context(), args[0], &w, yes); err != nil {
			return err
		}
		if w.Expect == nil {
			w.Expect = &care.Expect{} // it is blank, and to stay so
		}
		var m care.Medium
		if err := a.tapeWork(c.Context(), args[0], "media-erase", w, &m); err != nil {
			return err
		}
		return a.print(m, func(p *printer) { p.line("Cartridge %s is blank.", cli.Clean(args[1])) })
	})
	c.Flags().BoolVar(&yes, "yes", false, "what is on it may be lost")
	c.Flags().StringVar(&w.Drive, "drive", "", "serial number or address of the drive; without it, a free one")
	return c
}

func (a *app) tapeMediaImport() *cobra.Command {
	return tapeSub("import LIBRARY", "Bring the cartridges in the library's door to free slots", 1, func(c *cobra.Command, args []string) error {
		var m care.Moved
		if err := a.tapeWork(c.Context(), args[0], "media-import", api.TapeWork{}, &m); err != nil {
			return err
		}
		return a.print(m, func(p *printer) {
			p.line("%s imported. %s", plural(len(m.Cartridges), "cartridge"), cli.Clean(strings.Join(m.Cartridges, " ")))
		})
	})
}

func (a *app) tapeMediaExport() *cobra.Command {
	return tapeSub("export LIBRARY CARTRIDGE", "Bring a cartridge to the library's door, where a person takes it out", 2, func(c *cobra.Command, args []string) error {
		var m care.Moved
		if err := a.tapeWork(c.Context(), args[0], "media-export", api.TapeWork{Cartridge: args[1]}, &m); err != nil {
			return err
		}
		return a.print(m, func(p *printer) { p.line("Cartridge %s is in the door, at address %d.", cli.Clean(args[1]), m.Element) })
	})
}

func (a *app) tapeExportDir() *cobra.Command {
	var w api.TapeWork
	c := tapeSub("export-dir LIBRARY CARTRIDGE FOLDER", "Copy an LTFS volume as it is to a new folder on the appliance, in the layout that the reference implementation's file backend reads", 3, func(c *cobra.Command, args []string) (err error) {
		w.Cartridge = args[1]
		if w.Dir, err = absoluteFile(args[2]); err != nil {
			return err
		}
		var r ltfs.Copied
		if err := a.tapeWork(c.Context(), args[0], "export-dir", w, &r); err != nil {
			return err
		}
		return a.print(r, func(p *printer) { printCopied(p, r, "is in "+cli.Clean(w.Dir)) })
	})
	c.Flags().StringVar(&w.Drive, "drive", "", "serial number or address of the drive; without it, a free one")
	return c
}

func (a *app) tapeImportDir() *cobra.Command {
	var w api.TapeWork
	var over, yes bool
	c := tapeSub("import-dir LIBRARY CARTRIDGE FOLDER", "Copy an LTFS volume from a folder in the reference implementation's layout to a blank cartridge", 3, func(c *cobra.Command, args []string) (err error) {
		w.Cartridge = args[1]
		if w.Dir, err = absoluteFile(args[2]); err != nil {
			return err
		}
		if over {
			if err := a.tapeLoss(c.Context(), args[0], &w, yes); err != nil {
				return err
			}
		}
		var r ltfs.Copied
		if err := a.tapeWork(c.Context(), args[0], "import-dir", w, &r); err != nil {
			return err
		}
		return a.print(r, func(p *printer) { printCopied(p, r, "is on cartridge "+cli.Clean(args[1])) })
	})
	c.Flags().StringVar(&w.Drive, "drive", "", "serial number or address of the drive; without it, a free one")
	c.Flags().BoolVar(&over, "overwrite", false, "also if the cartridge is not blank; asks with what will be lost")
	c.Flags().BoolVar(&yes, "yes", false, "what --overwrite loses may be lost")
	return c
}
