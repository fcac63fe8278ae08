package main

import (
	"fmt"
	"net/url"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) poolCmd() *cobra.Command {
	return cli.Group("pool", "Storage pools", a.poolMake("create"), a.poolMake("import"), a.poolList(), a.poolShow(), a.poolVerify(), a.poolScrub(), a.poolGC(), a.poolKey())
}

// poolMake is create, and import, which takes over what is there.
func (a *app) poolMake(verb string) *cobra.Command {
	short, path, done := "Create a pool", "/v1/pools", "is ready"
	if verb == "import" {
		short, path, done = "Take over a pool that is already there", "/v1/pools/import", "is taken over"
	}
	var s api.PoolSpec
	var e encryption
	c := &cobra.Command{Use: verb + " NAME --kind KIND --path DIR", Short: short, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		abs, err := filepath.Abs(s.Path) // the daemon has another working folder
		if err != nil {
			return holdfast.Errorf(holdfast.Invalid, "", "%w", err)
		}
		s.Name, s.Path = args[0], abs
		s.Config = map[string]any{}
		key, err := e.config(c.Context(), a, s.Config)
		if err != nil {
			return err
		}
		var x api.Pool
		if err := a.call(c.Context(), "POST", path, s, &x); err != nil {
			return err
		}
		return a.print(x, func(p *printer) {
			p.line("Pool %s %s.", cli.Clean(x.Name), done)
			e.tell(p, x.Name, key)
			if verb == "import" {
				p.line("next: holdfast catalog rebuild")
				return
			}
			p.line("next: holdfast host enroll NAME, then holdfast backup VM --pool %s", cli.Clean(x.Name))
		})
	}}
	c.Flags().StringVar(&s.Kind, "kind", "dedup", "kind of pool")
	c.Flags().StringVar(&s.Path, "path", "", "the pool's folder on the appliance")
	e.flags(c, verb)
	if verb == "create" {
		c.Flags().StringVar(&s.Chunking, "chunking", "", "how disks are cut: adaptive (default), variable, fixed-64K, fixed-128K, fixed-256K, fixed-512K")
	}
	_ = c.MarkFlagRequired("path") // fails only for a flag that is not there
	return c
}

func (a *app) poolList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List pools", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var ps []api.Pool
		if err := a.call(c.Context(), "GET", "/v1/pools", nil, &ps); err != nil {
			return err
		}
		return a.print(ps, func(p *printer) {
			if len(ps) == 0 {
				p.line("No pool yet; next: holdfast pool create NAME --kind dedup --path DIR")
				return
			}
			p.row("NAME", "KIND", "STATE", "SETS", "LOGICAL", "STORED", "RATIO", "FREE")
			for _, x := range ps {
				if x.Usage == nil {
					p.row(x.Name, x.Kind, x.State, "", "", "", "", x.Error)
					continue
				}
				p.row(x.Name, x.Kind, x.State, x.Usage.Sets, cli.Size(x.Usage.Logical), cli.Size(x.Usage.Stored), ratio(x.Ratio), cli.Size(x.Usage.Free))
			}
		})
	}}
}

func poolLine(x api.Pool) string {
	if x.Usage == nil {
		return x.State + ", " + x.Error
	}
	return fmt.Sprintf("%s, %s, %s stored for %s (%s), %s free", x.State, plural(x.Usage.Sets, "set"), cli.Size(x.Usage.Stored), cli.Size(x.Usage.Logical), ratio(x.Ratio), cli.Size(x.Usage.Free))
}

func ratio(r float64) string {
	if r == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f:1", r)
}

func (a *app) poolShow() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Show a pool", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var x api.Pool
		if err := a.call(c.Context(), "GET", "/v1/pools/"+url.PathEscape(args[0]), nil, &x); err != nil {
			return err
		}
		return a.print(x, func(p *printer) {
			p.row("name", x.Name)
			p.row("id", x.ID)
			p.row("kind", x.Kind)
			p.row("config", string(x.Config))
			p.row("chunking", x.Chunking)
			p.row("state", x.State, x.Error)
			p.row("created", when(x.Created))
			if u := x.Usage; u != nil {
				p.row("sets", u.Sets)
				p.row("logical", cli.Size(u.Logical))
				p.row("unique data", cli.Size(u.Data), plural(int(u.Chunks), "chunk"))
				p.row("stored", cli.Size(u.Stored), ratio(x.Ratio))
				p.row("reclaimable", cli.Size(u.Reclaimable))
				p.row("free", cli.Size(u.Free), "of "+cli.Size(u.Size))
			}
		})
	}}
}

func (a *app) poolVerify() *cobra.Command {
	return &cobra.Command{Use: "verify NAME", Short: "Read a pool back and check every byte", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		return a.verify(c, "/v1/pools/"+url.PathEscape(args[0])+"/verify", "pool "+args[0])
	}}
}

// verify asks for a verification and reports damage as an error.
func (a *app) verify(c *cobra.Command, path, what string) error {
	var r api.VerifyReport
	if err := a.call(c.Context(), "POST", path, nil, &r); err != nil {
		return err
	}
	err := a.print(r, func(p *printer) {
		p.line("%s, %s, %s read.", plural(r.Sets, "set"), plural(int(r.Chunks), "chunk"), cli.Size(r.Bytes))
		for _, d := range r.Damaged {
			p.row("DAMAGED", d.Where, d.VM, d.Disk, d.Set, d.Text)
		}
		if len(r.Damaged) == 0 {
			p.line("Everything is as it was written.")
		}
	})
	if err == nil && len(r.Damaged) > 0 {
		err = holdfast.Errorf(holdfast.Corrupt, "", "%s has %s", what, plural(len(r.Damaged), "damaged part")).
			Advise("run a new full backup of the virtual machines named; restores of other points are not affected")
	}
	return err
}

func (a *app) poolGC() *cobra.Command {
	var dry bool
	c := &cobra.Command{Use: "gc NAME", Short: "Give the space of deleted sets back", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		path := "/v1/pools/" + url.PathEscape(args[0]) + "/gc"
		if dry {
			path += "?dry_run=true"
		}
		var r api.CollectReport
		if err := a.call(c.Context(), "POST", path, nil, &r); err != nil {
			return err
		}
		return a.print(r, func(p *printer) {
			verb := "given back"
			if dry {
				verb = "would be given back"
			}
			p.line("%s %s: %s removed, %s rewritten (%s copied); %s waits for readers or a later run.", cli.Size(r.Freed), verb,
				plural(r.Removed, "container"), plural(r.Rewritten, "container"), cli.Size(r.Copied), cli.Size(r.Pending))
			p.line("%d chunks are in use, %d were not.", r.ChunksLive, r.ChunksDead)
		})
	}}
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would be freed")
	return c
}
