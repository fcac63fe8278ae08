package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/tape/care"
	"github.com/holdfast-backup/holdfast/tape/ltfs"
)

const tapesPath = "/v1/tape/libraries"

const tapeHelp = `A cartridge is named by its bar code, or by the address of the element where it is. That only chooses it: what it is, its label and the
serial number in its memory say, and what is overwritten is what was read and shown before, or nothing.
`

func (a *app) tapeCmd() *cobra.Command {
	c := cli.Group("tape", "Tape libraries, drives and cartridges",
		cli.Group("library", "Tape libraries", a.tapeLibraryAdd(), a.tapeLibraryList(), a.tapeLibraryShow(), a.tapeLibraryScan(), a.tapeLibraryRemove()),
		cli.Group("drive", "Tape drives", a.tapeDriveList(), a.tapeDriveTest(), a.tapeDriveClean()),
		cli.Group("media", "Cartridges", a.tapeMediaList(), a.tapeMediaShow(), a.tapeMediaLabel(), a.tapeMediaErase(), a.tapeMediaImport(), a.tapeMediaExport()),
		a.tapeExportDir(), a.tapeImportDir())
	c.Long = "Tape libraries, drives and cartridges.\n\n" + tapeHelp + "\n" + cli.ExitHelp
	return c
}

func tapePath(name string) string { return tapesPath + "/" + url.PathEscape(name) }

// tape makes a command of this noun: its help ends with the exit codes.
func tapeSub(use, short string, n int, run func(c *cobra.Command, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Long: short + ".\n\n" + tapeHelp + "\n" + cli.ExitHelp, Args: cobra.ExactArgs(n), RunE: run}
}

// tapeWork has the daemon work and waits for what it found.
func (a *app) tapeWork(ctx context.Context, library, do string, w api.TapeWork, report any) error {
	var r api.Run
	if err := a.call(ctx, "POST", tapePath(library)+"/"+do, w, &r); err != nil {
		return err
	}
	_, err := a.await(ctx, r, report)
	return err
}

func (a *app) tapeLibraryAdd() *cobra.Command {
	var drives []string
	var prefix string
	c := tapeSub("add NAME ADDRESS", "Tell the appliance where a tape library is", 2, func(c *cobra.Command, args []string) error {
		s := api.TapeLibrarySpec{Name: args[0], Address: args[1], Prefix: prefix}
		for _, d := range drives {
			at, serial, ok := strings.Cut(d, "=")
			if !ok || s.Drives[at] != "" {
				return &cli.ExitError{Code: cli.Usage, Err: holdfast.Errorf(holdfast.Invalid, "", "--drive %q is not ELEMENT=SERIAL, or there twice", d)}
			}
			if s.Drives == nil {
				s.Drives = map[string]string{}
			}
			s.Drives[at] = serial
		}
		var out api.TapeLibraryShown
		if err := a.call(c.Context(), "POST", tapesPath, s, &out); err != nil {
			return err
		}
		return a.print(out, func(p *printer) {
			p.line("Tape library %s is added: %s, %s. Next: holdfast tape media list %s", cli.Clean(out.Name), plural(len(out.Stock.Drives), "drive"), plural(len(out.Stock.Places), "slot"), cli.Clean(out.Name))
		})
	})
	c.Long = `Tell the appliance where a tape library is.

Addresses:
  iscsi://HOST[:PORT]/TARGET   with ?user=NAME&secret-file=FILE for CHAP, &target-secret-file=FILE for both directions, &digests=on for checksums
  sg:/dev/sgN                  a changer, or a drive of its own, of this machine; sg:/dev/sgN,/dev/sgM... names the drives too
  sg:serial:NUMBER             the changer with a serial number: names of device files change
Secrets are first lines of files on the appliance.

` + cli.ExitHelp
	c.Flags().StringArrayVar(&drives, "drive", nil, "ELEMENT=SERIAL of a drive, where the library does not tell it; say it again for each")
	c.Flags().StringVar(&prefix, "cleaning-prefix", "", "bar codes of cleaning cartridges begin so (default CLN)")
	return c
}

func (a *app) tapeLibraryList() *cobra.Command {
	return tapeSub("list", "List tape libraries", 0, func(c *cobra.Command, _ []string) error {
		var ls []api.TapeLibrary
		if err := a.call(c.Context(), "GET", tapesPath, nil, &ls); err != nil {
			return err
		}
		return a.print(ls, func(p *printer) {
			if len(ls) == 0 {
				p.line("No tape library yet; next: holdfast tape library add NAME ADDRESS")
				return
			}
			p.row("NAME", "SERIAL", "ADDRESS")
			for _, l := range ls {
				p.row(cli.Clean(l.Name), cli.Clean(l.Serial), cli.Clean(l.Address))
			}
		})
	})
}

func (a *app) tapeShown(ctx context.Context, name string) (out api.TapeLibraryShown, err error) {
	err = a.call(ctx, "GET", tapePath(name), nil, &out)
	return out, err
}

func (a *app) tapeLibraryShow() *cobra.Command {
	return tapeSub("show NAME", "Show a tape library with its drives and places", 1, func(c *cobra.Command, args []string) error {
		out, err := a.tapeShown(c.Context(), args[0])
		if err != nil {
			return err
		}
		return a.print(out, func(p *printer) {
			p.line("%s: %s %s %s, serial %s, at %s", cli.Clean(out.Name), cli.Clean(out.Stock.Vendor), cli.Clean(out.Stock.Product), cli.Clean(out.Stock.Revision), cli.Clean(out.Serial), cli.Clean(out.Address))
			printDrives(p, out.Stock)
			printPlaces(p, out.Stock, true)
		})
	})
}

func printDrives(p *printer, s care.Stock) {
	p.row("DRIVE", "SERIAL", "MODEL", "DEVICE", "CARTRIDGE", "STATE")
	for _, d := range s.Drives {
		state, in := "free", cli.Clean(d.Barcode)
		if d.Busy {
			state = "in use"
		}
		if d.Full && in == "" {
			in = "?"
		}
		p.row(fmt.Sprint(d.Element), cli.Clean(d.Serial), cli.Clean(d.Vendor+" "+d.Product), cli.Clean(d.Device), in, state)
	}
}

// printPlaces lists cartridges; with empty also places without one.
func printPlaces(p *printer, s care.Stock, empty bool) {
	p.row("ADDRESS", "PLACE", "CARTRIDGE", "")
	for _, x := range s.Places {
		if !x.Full && !empty {
			continue
		}
		note := cli.Clean(x.Problem)
		if x.Cleaning {
			note = strings.TrimSpace("cleaning " + note)
		}
		code := cli.Clean(x.Barcode)
		if x.Full && code == "" {
			code = "?"
		}
		p.row(fmt.Sprint(x.Element), x.Kind, code, note)
	}
	for _, t := range s.Twice {
		p.line("The bar code %s is there more than once: name those cartridges by address.", cli.Clean(t))
	}
}

func (a *app) tapeLibraryScan() *cobra.Command {
	c := tapeSub("scan NAME|ADDRESS", "Have a library look at all its places, or list the devices behind an address", 1, func(c *cobra.Command, args []string) error {
		if strings.Contains(args[0], ":") {
			var ds []api.TapeDevice
			if err := a.call(c.Context(), "GET", "/v1/tape/devices?address="+url.QueryEscape(args[0]), nil, &ds); err != nil {
				return err
			}
			return a.print(ds, func(p *printer) {
				p.row("KIND", "PLACE", "VENDOR", "PRODUCT", "REVISION", "SERIAL")
				for _, d := range ds {
					p.row(d.Kind, cli.Clean(d.Place), cli.Clean(d.Vendor), cli.Clean(d.Product), cli.Clean(d.Revision), cli.Clean(d.Serial))
				}
			})
		}
		var s care.Stock
		if err := a.tapeWork(c.Context(), args[0], "scan", api.TapeWork{}, &s); err != nil {
			return err
		}
		return a.print(s, func(p *printer) { printDrives(p, s); printPlaces(p, s, true) })
	})
	c.Long = "Have a library look at all its places, which takes minutes, or list the devices behind an address, before it is added; sg:all lists those of\nthe appliance's own SCSI device files. Reads only.\n\n" + cli.ExitHelp
	return c
}

func (a *app) tapeLibraryRemove() *cobra.Command {
	return tapeSub("remove NAME", "Forget a tape library; nothing in it changes", 1, func(c *cobra.Command, args []string) error {
		var out api.TapeLibrary
		if err := a.call(c.Context(), "DELETE", tapePath(args[0]), nil, &out); err != nil {
			return err
		}
		return a.print(out, func(p *printer) {
			p.line("Tape library %s is forgotten; its cartridges are as they were.", cli.Clean(out.Name))
		})
	})
}

func (a *app) tapeDriveList() *cobra.Command {
	return tapeSub("list LIBRARY", "List drives and what is in them", 1, func(c *cobra.Command, args []string) error {
		out, err := a.tapeShown(c.Context(), args[0])
		if err != nil {
			return err
		}
		return a.print(out.Stock.Drives, func(p *printer) { printDrives(p, out.Stock) })
	})
}

func (a *app) tapeDriveTest() *cobra.Command {
	var scratch string
	var yes bool
	c := tapeSub("test LIBRARY DRIVE", "Ask a drive what it can do and complains of, or write and read with a scratch cartridge", 2, func(c *cobra.Command, args []string) error {
		w := api.TapeWork{Drive: args[1], Cartridge: scratch}
		if scratch != "" {
			if err := a.tapeLoss(c.Context(), args[0], &w, yes); err != nil {
				return err
			}
		}
		var r care.Tested
		if err := a.tapeWork(c.Context(), args[0], "drive-test", w, &r); err != nil {
			return err
		}
		if err := a.print(r, func(p *printer) { printTested(p, r) }); err != nil {
			return err
		}
		if r.Differs > 0 {
			return holdfast.Errorf(holdfast.Corrupt, "test tape drive", "%d blocks came back otherwise than they were written", r.Differs).Advise("try another cartridge, then clean the drive, then have it serviced")
		}
		return nil
	})
	c.Flags().StringVar(&scratch, "scratch", "", "cartridge to write 64 MiB to and read them back; it is blank afterwards")
	c.Flags().BoolVar(&yes, "yes", false, "the scratch cartridge's content may be lost")
	return c
}

func printTested(p *printer, r care.Tested) {
	p.line("Drive %s at element %d: blocks up to %s, finds places by %s.", cli.Clean(r.Drive), r.Element, cli.Size(int64(r.Capabilities.MaxBlock)), r.Capabilities.Locate)
	if r.Written > 0 {
		p.line("%s written and read back in %.1f s, %s differ.", cli.Size(r.Written), r.WriteSeconds, plural(r.Differs, "block"))
	}
	for _, x := range r.Alerts {
		p.line("The drive says: %s", cli.Clean(x))
	}
	if len(r.Alerts) == 0 {
		p.line("The drive complains of nothing.")
	}
}

func (a *app) tapeDriveClean() *cobra.Command {
	var with string
	c := tapeSub("clean LIBRARY DRIVE", "Have a drive clean itself with a cleaning cartridge of the library", 2, func(c *cobra.Command, args []string) error {
		var r care.Cleaned
		if err := a.tapeWork(c.Context(), args[0], "drive-clean", api.TapeWork{Drive: args[1], Cartridge: with}, &r); err != nil {
			return err
		}
		return a.print(r, func(p *printer) {
			p.line("Drive %s was cleaned with cartridge %s.", cli.Clean(r.Drive), cli.Clean(r.Cartridge))
			for _, x := range r.Alerts {
				p.line("The drive still says: %s", cli.Clean(x))
			}
		})
	})
	c.Flags().StringVar(&with, "cartridge", "", "cleaning cartridge; without it, the first there is")
	return c
}

func printCopied(p *printer, r ltfs.Copied, what string) {
	p.line("LTFS volume %s %s: %d records, %d filemarks, %s.", r.UUID, what, r.Records, r.Marks, cli.Size(r.Bytes))
}
