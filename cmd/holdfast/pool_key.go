package main

import (
	"context"
	"io"
	"net/url"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

// encryption is the part of a new pool's flags that says how it is encrypted.
type encryption struct {
	on, create      bool
	key, passphrase string
}

func (e *encryption) flags(c *cobra.Command, verb string) {
	what, file := "the pool is encrypted", "file of the pool's key, or of the key from its recovery sheet, on the appliance"
	if e.create = verb == "create"; e.create {
		what = "encrypt the pool; without a key file or a passphrase a new key file is made in the appliance's folder"
		file = "file of the key on the appliance; made if it is not there"
	}
	c.Flags().BoolVar(&e.on, "encrypt", false, what)
	c.Flags().StringVar(&e.key, "key-file", "", file)
	c.Flags().StringVar(&e.passphrase, "passphrase-file", "", "file on the appliance with a passphrase in its first line")
}

// config adds to a pool's config what the flags say. For a new pool it finds or makes the key file.
func (e *encryption) config(ctx context.Context, a *app, config map[string]any) (*api.KeyFile, error) {
	set := func(kind, file string) { config["encryption"], config["key_file"] = kind, file }
	switch {
	case !e.on && e.key == "" && e.passphrase == "":
		return nil, nil
	case e.key != "" && e.passphrase != "":
		return nil, holdfast.Errorf(holdfast.Invalid, "", "both --key-file and --passphrase-file").Advise("choose one; the recovery sheet opens the pool besides")
	case e.passphrase != "":
		abs, err := absoluteFile(e.passphrase)
		set("passphrase", abs)
		return nil, err
	}
	abs, err := absoluteFile(e.key)
	if err != nil {
		return nil, err
	}
	if !e.create {
		if abs == "" {
			return nil, holdfast.Errorf(holdfast.Invalid, "", "an encrypted pool without its key").Advise("name the file with --key-file or --passphrase-file")
		}
		set("key-file", abs)
		return nil, nil
	}
	var f api.KeyFile
	if err := a.call(ctx, "POST", "/v1/keys", api.KeySpec{File: abs}, &f); err != nil {
		return nil, err
	}
	set("key-file", f.File)
	return &f, nil
}

// encryptFlags describe how a pool is encrypted. The key file is there before the pool is.
func encryptFlags(a *app, c *cobra.Command) func(kind string, config map[string]any) error {
	var e encryption
	e.flags(c, c.Name())
	return func(_ string, config map[string]any) error {
		f, err := e.config(c.Context(), a, config)
		if err != nil || a.json {
			return err
		}
		p := &printer{tw: tabwriter.NewWriter(a.errw, 0, 0, 2, ' ', 0)}
		e.tell(p, c.Flags().Arg(0), f)
		if p.err == nil {
			p.err = p.tw.Flush()
		}
		return p.err
	}
}

// tell says what the admin must do now, lest the key be lost with the appliance.
func (e *encryption) tell(p *printer, pool string, f *api.KeyFile) {
	if f != nil {
		p.line("The pool's key is in %s on the appliance; the key's fingerprint is %s.", cli.Clean(f.File), f.Print)
		p.line("Without a key nobody can restore. When the pool is made, print its recovery sheet: holdfast pool key sheet %s", cli.Clean(pool))
	}
}

// absoluteFile makes a path one that the daemon understands; "" stays.
func absoluteFile(p string) (string, error) {
	if p == "" {
		return "", nil
	}
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", holdfast.Errorf(holdfast.Invalid, "", "%w", err)
	}
	return abs, nil
}

func (a *app) poolKey() *cobra.Command {
	return cli.Group("key", "Keys of an encrypted pool", a.poolKeyShow(), a.poolKeyRotate(), a.poolKeySheet())
}

func keysPath(pool string) string { return "/v1/pools/" + url.PathEscape(pool) + "/keys" }

func (a *app) poolKeyShow() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Show what opens a pool and what encrypts it", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var x api.PoolKeys
		if err := a.call(c.Context(), "GET", keysPath(args[0]), nil, &x); err != nil {
			return err
		}
		return a.print(x, func(p *printer) { printKeys(p, x) })
	}}
}

func printKeys(p *printer, x api.PoolKeys) {
	p.row("pool", x.Name, x.Pool.String())
	p.row("opened with", x.Encryption, x.File)
	for _, w := range x.Wraps {
		p.row("opens", w.Kind, w.Print+w.Cost, when(w.Created))
	}
	for i, e := range x.Epochs {
		note := "for what was written then"
		if i == len(x.Epochs)-1 {
			note = "for what is written now"
		}
		if e.Redo {
			note += "; older containers are encrypted anew by 'pool gc'"
		}
		p.row("data key", e.ID, note, when(e.Created))
	}
}

func (a *app) poolKeyRotate() *cobra.Command {
	var r api.KeyRotation
	c := &cobra.Command{Use: "rotate NAME", Short: "Begin a new data key, and change what opens the pool", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) (err error) {
		if r.KeyFile, err = absoluteFile(r.KeyFile); err != nil {
			return err
		}
		if r.PassphraseFile, err = absoluteFile(r.PassphraseFile); err != nil {
			return err
		}
		var x api.PoolKeys
		if err := a.call(c.Context(), "POST", keysPath(args[0])+"/rotate", r, &x); err != nil {
			return err
		}
		return a.print(x, func(p *printer) {
			printKeys(p, x)
			if r.Reencrypt {
				p.line("next: holdfast pool gc %s", cli.Clean(x.Name))
			}
		})
	}}
	c.Flags().StringVar(&r.KeyFile, "new-key-file", "", "file of the key that opens the pool from now on, on the appliance; made if it is not there")
	c.Flags().StringVar(&r.PassphraseFile, "new-passphrase-file", "", "the same with a passphrase")
	c.Flags().BoolVar(&r.Reencrypt, "reencrypt", false, "have 'pool gc' encrypt everything older anew")
	return c
}

func (a *app) poolKeySheet() *cobra.Command {
	var fresh bool
	c := &cobra.Command{Use: "sheet NAME", Short: "Print the recovery sheet: it opens the pool when everything else is lost", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		path := keysPath(args[0]) + "/sheet"
		if fresh {
			path += "?new=true"
		}
		var x api.Sheet
		if err := a.call(c.Context(), "POST", path, nil, &x); err != nil {
			return err
		}
		if a.json {
			return a.print(x, nil)
		}
		_, err := io.WriteString(a.out, x.Text)
		return err
	}}
	c.Flags().BoolVar(&fresh, "new", false, "make a new recovery key; sheets printed before are worthless then")
	return c
}

func (a *app) poolScrub() *cobra.Command {
	return &cobra.Command{Use: "scrub NAME", Short: "Check a pool's stored bytes without its key", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var r api.VerifyReport
		if err := a.call(c.Context(), "POST", "/v1/pools/"+url.PathEscape(args[0])+"/scrub", nil, &r); err != nil {
			return err
		}
		err := a.print(r, func(p *printer) {
			p.line("%s, %s, %s read.", plural(r.Sets, "set"), plural(int(r.Chunks), "chunk"), cli.Size(r.Bytes))
			for _, d := range r.Damaged {
				p.row("DAMAGED", d.Where, d.Text)
			}
			if len(r.Damaged) == 0 {
				p.line("Every stored byte is as it was written.")
			}
		})
		if err == nil && len(r.Damaged) > 0 {
			err = holdfast.Errorf(holdfast.Corrupt, "", "pool %s has %s", args[0], plural(len(r.Damaged), "damaged object")).
				Advise("open the pool with its key and run 'holdfast pool verify %s': it names the virtual machines that are hit", args[0])
		}
		return err
	}}
}
