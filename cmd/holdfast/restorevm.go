package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

// laterForm shows a time to come.
const laterForm = "2006-01-02 15:04 MST"

// wish is what the flags of a restore say, beside the spec itself.
type wish struct {
	spec              api.RestoreSpec
	before, at        string
	switches, dirs    []string
	preflight, detach bool
	yes               bool
}

const restoreLong = `Restore sets, or of virtual machines the newest point in time (or, with --at-or-before, the newest that is not later).

Before a byte moves, the host is asked what it has, and every VM gets a verdict; --preflight only prints it. If one VM is refused, nothing is
restored. A VM that is overwritten is untouched until the restored disks are complete; then it is shut down and replaced, and keeps its id, and its
backups go on without a new full.

A restore that a restart of appliance or agent interrupts goes on by itself in the same run.`

func (a *app) restoreVM() *cobra.Command {
	w := &wish{}
	s := &w.spec
	c := &cobra.Command{
		Use:   "vm [SET...] [--vm NAME]... --host NAME (--original | --to DIR)",
		Short: "Restore virtual machines",
		Long:  restoreLong,
		RunE: func(c *cobra.Command, args []string) error {
			s.Sets = args
			if len(args) == 1 {
				s.Set, s.Sets = args[0], nil
			}
			return a.restore(c, w)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&s.VMs, "vm", nil, "virtual machine, by name or id, instead of a set; repeat it for more")
	f.StringVar(&w.before, "at-or-before", "", "with --vm: the newest point in time that is not later (2026-11-22T18:00, or with zone)")
	f.BoolVar(&s.Original, "original", false, "to the place and name that the VM had")
	f.StringVar(&s.Dir, "to", "", "absolute folder on the host for the new VM's files; of several VMs each gets a folder in it")
	f.StringVar(&s.Name, "name", "", "name of the new VM (default: the old one)")
	f.StringVar(&s.Prefix, "prefix", "", "put before each name")
	f.StringVar(&s.Suffix, "suffix", "", "put behind each name")
	f.StringArrayVar(&w.dirs, "disk-dir", nil, "N=DIR: folder for disk N (number, name, or * for all others)")
	f.StringArrayVar(&w.switches, "switch", nil, "OLD=NEW: adapters of switch OLD get switch NEW; OLD= leaves them unconnected")
	f.StringArrayVar(&s.AddSwitches, "add-adapter", nil, "add a network adapter on this switch")
	f.BoolVar(&s.NoNetwork, "no-network", false, "leave out the VM's network adapters")
	f.StringVar(&s.Existing, "existing", "", "a VM that is there: suffix (default: the restored one gets a time behind its name), overwrite, or skip")
	f.IntVar(&s.ParallelVMs, "vms", 0, "virtual machines at once (default 8)")
	f.IntVar(&s.ParallelDisks, "disks", 0, "disks of a virtual machine at once (default 2)")
	a.restoreFlags(c, w)
	return c
}

// restoreFlags are those that VMs and disks share.
func (a *app) restoreFlags(c *cobra.Command, w *wish) {
	f := c.Flags()
	f.StringVar(&w.spec.Host, "host", "", "host that gets it")
	f.StringVar(&w.spec.Pool, "pool", "", "only sets of this pool (default: the best copy of all pools)")
	f.BoolVar(&w.spec.Shutdown, "shutdown", false, "a VM that is overwritten may be shut down")
	f.BoolVar(&w.spec.Start, "start", false, "start the VM when it is restored")
	f.StringArrayVar(&w.spec.Options, "set", nil, "OPTION=VALUE, as of jobs: reconnect, buffer, limit, precondition, pre-script, post-script, script-timeout, priority")
	f.StringVar(&w.at, "at", "", "begin at this time, once (2026-11-22T18:00, or with zone)")
	f.BoolVar(&w.preflight, "preflight", false, "only say what would be done and what stands in the way")
	f.BoolVar(&w.detach, "detach", false, "start the run and return")
	f.BoolVar(&w.yes, "yes", false, "do not ask before something is overwritten")
	_ = c.MarkFlagRequired("host") // fails only for a flag that is not there
}

func (a *app) restoreDisk() *cobra.Command {
	w := &wish{}
	d := &api.DiskRestore{}
	over := -1
	c := &cobra.Command{
		Use:   "disk SET --disk N --host NAME --vm V (--overwrite M | --new DIR)",
		Short: "Restore one disk to a virtual machine that is there",
		Long: "Restore one disk of a set to a virtual machine that is there: in place of one of its disks, or as a further one. The other disks stay as they are.\n" +
			"To overwrite a disk the VM must be off; --shutdown shuts it down when the restored disk is complete.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			w.spec.Set, w.spec.Disk = args[0], d
			if c.Flags().Changed("overwrite") == c.Flags().Changed("new") {
				return holdfast.Errorf(holdfast.Invalid, "restore disk", "the disk either takes the place of one or is a new one").Advise("give one of --overwrite M and --new DIR")
			}
			if c.Flags().Changed("overwrite") {
				d.Overwrite = &over
			}
			return a.restore(c, w)
		},
	}
	f := c.Flags()
	f.IntVar(&d.No, "disk", 0, "number of the disk in the set, as 'holdfast set show' lists it")
	f.StringVar(&d.VM, "vm", "", "virtual machine that gets the disk, by name or id")
	f.IntVar(&over, "overwrite", 0, "number of the VM's disk that is replaced, as 'holdfast vm list --json' lists them")
	f.StringVar(&d.Dir, "new", "", "add it as a new disk, with its file in this absolute folder on the host")
	a.restoreFlags(c, w)
	_ = c.MarkFlagRequired("disk") // these fail only for a flag that is not there
	_ = c.MarkFlagRequired("vm")
	return c
}

// restore does what was wished for: says what would be done, keeps it for later, or does it.
func (a *app) restore(c *cobra.Command, w *wish) error {
	ctx, s := c.Context(), &w.spec
	var err error
	if s.Switches, err = pairs("--switch", w.switches); err != nil {
		return err
	}
	if s.DiskDirs, err = pairs("--disk-dir", w.dirs); err != nil {
		return err
	}
	if s.Before, err = moment(w.before); err != nil {
		return err
	}
	at, err := moment(w.at)
	if err != nil {
		return err
	}
	var p api.Preflight
	if w.preflight || s.Existing == "overwrite" || s.Disk != nil {
		if err := a.call(ctx, "POST", "/v1/restores/preflight", s, &p); err != nil {
			return err
		}
	}
	if w.preflight {
		return a.printPreflight(p)
	}
	if err := a.agree(w.yes, p); err != nil {
		return err
	}
	if !at.IsZero() {
		var r api.RestoreAt
		if err := a.call(ctx, "POST", "/v1/restores/later", api.RestoreAt{At: at, Spec: *s}, &r); err != nil {
			return err
		}
		return a.print(r, func(p *printer) {
			p.line("Restore %s begins at %s; take it back with: holdfast restore cancel %s", r.ID, r.At.Local().Format(laterForm), r.ID)
		})
	}
	var r api.Run
	if err := a.call(ctx, "POST", "/v1/restores", s, &r); err != nil {
		return err
	}
	return a.finish(c, r, w.detach)
}

// agree says what will be lost, and asks.
func (a *app) agree(yes bool, p api.Preflight) error {
	var lost []string
	for _, x := range p.Plans {
		if x.Verdict != "refused" {
			lost = append(lost, x.Lost...)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	return a.confirm(yes, "This will be lost:\n  "+cli.Clean(strings.Join(lost, "; ")))
}

// printPreflight prints the verdict; one that refuses is the command's error.
func (a *app) printPreflight(p api.Preflight) error {
	err := a.print(p, func(out *printer) {
		out.row("VM", "POINT IN TIME", "POOL", "BECOMES", "ON", "IN", "VERDICT")
		for _, x := range p.Plans {
			out.row(x.VM, when(x.Time), x.Pool, x.Target, x.Host, x.Dir, x.Verdict)
		}
		for _, x := range p.Plans {
			for _, l := range x.Lost {
				out.line("%s: will be lost: %s", cli.Clean(x.Target), cli.Clean(l))
			}
			for _, f := range x.Findings {
				text := fmt.Sprintf("%s: %s (%s): %s", cli.Clean(x.Target), f.Level, f.Code, cli.Clean(f.Text))
				if f.Advice != "" {
					text += "; " + cli.Clean(f.Advice)
				}
				out.line("%s", text)
			}
		}
	})
	if err != nil || p.Verdict != "refused" {
		return err
	}
	return &cli.ExitError{Code: cli.Failed, Err: holdfast.Errorf(holdfast.Invalid, "preflight", "the restore would be refused").Advise("see the findings above")}
}

func (a *app) restoreList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List restores that wait for their time", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var rs []api.RestoreAt
		if err := a.call(c.Context(), "GET", "/v1/restores/later", nil, &rs); err != nil {
			return err
		}
		return a.print(rs, func(p *printer) {
			if len(rs) == 0 {
				p.line("No restore waits for its time; those that have begun are runs: holdfast run list")
				return
			}
			p.row("RESTORE", "AT", "WHAT", "HOST", "TO")
			for _, r := range rs {
				to := r.Spec.Dir
				if r.Spec.Original {
					to = "the original place"
				}
				p.row(r.ID, r.At.Local().Format(laterForm), strings.Join(append(append([]string{}, r.Spec.VMs...), append(r.Spec.Sets, r.Spec.Set)...), " "), r.Spec.Host, to)
			}
		})
	}}
}

func (a *app) restoreCancel() *cobra.Command {
	return &cobra.Command{Use: "cancel RESTORE", Short: "Forget a restore that waits for its time", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var r api.RestoreAt
		if err := a.call(c.Context(), "DELETE", "/v1/restores/later/"+url.PathEscape(args[0]), nil, &r); err != nil {
			return err
		}
		return a.print(r, func(p *printer) { p.line("Restore %s will not be done.", r.ID) })
	}}
}

// protectCmd changes the label of a VM.
func (a *app) protectCmd(kind, path string, show func(context.Context, string, api.Label) (any, error)) *cobra.Command {
	var l api.Label
	c := &cobra.Command{
		Use:   "set " + kind + " --protected=true|false",
		Short: "Protect it from restores, or allow them again",
		Long: "A protected host is never the target of a restore, a protected virtual machine is never overwritten or given disks, until an administrator takes\n" +
			"the label off.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			v, err := show(c.Context(), path+url.PathEscape(args[0]), l)
			if err != nil {
				return err
			}
			return a.print(v, func(p *printer) {
				if l.Protected {
					p.line("%s is protected: no restore changes it.", cli.Clean(args[0]))
				} else {
					p.line("%s is not protected any more.", cli.Clean(args[0]))
				}
			})
		},
	}
	c.Flags().BoolVar(&l.Protected, "protected", false, "true or false")
	_ = c.MarkFlagRequired("protected") // fails only for a flag that is not there
	return c
}

func (a *app) vmSet() *cobra.Command {
	return a.protectCmd("VM", "/v1/vms/", func(ctx context.Context, path string, l api.Label) (any, error) {
		var v api.VM
		err := a.call(ctx, "PATCH", path, l, &v)
		return v, err
	})
}

// pairs reads OLD=NEW.
func pairs(flag string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, x := range list {
		k, v, ok := strings.Cut(x, "=")
		if !ok || k == "" {
			return nil, holdfast.Errorf(holdfast.Invalid, "read flags", "%s %q has no = with something before it", flag, x).Advise("write it as OLD=NEW")
		}
		out[k] = v
	}
	return out, nil
}

// moment reads a time: with a zone, or in this machine's.
func moment(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04"} {
		if t, err := time.ParseInLocation(form, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, holdfast.Errorf(holdfast.Invalid, "read time", "%q is no time", text).Advise("write it like 2026-11-22T18:00 or 2026-11-22T18:00:00Z")
}
