// Command holdfast-agent runs on a host of virtual machines: it enrols the host at an appliance and serves its backups and
// restores. It also brings tools for VHDX files and for the lab, a host made of folders.
//
// It owns the words and forms of its command line; the work is done in agent, agent/vhdx, agent/lab and nbd. A command that
// is killed leaves what those packages promise: no half disk is a valid one, and what a killed agent left is cleaned up
// when it runs again.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{out: os.Stdout, errw: os.Stderr}
	return a.main(ctx, os.Args[1:])
}

// An app is one invocation of the command line.
type app struct {
	out  io.Writer
	errw io.Writer
	json bool // --json
}

func (a *app) main(ctx context.Context, args []string) int {
	root := &cobra.Command{
		Use:           "holdfast-agent",
		Short:         "Serve the virtual machines of a host to a Holdfast appliance",
		Long:          "Serve the virtual machines of a host to a Holdfast appliance.\n\n" + exitHelp,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetOut(a.out)
	root.SetErr(a.errw)
	root.SetFlagErrorFunc(usage)
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON, for programs; errors too")
	root.AddCommand(a.enrollCmd(), a.runCmd(), a.labCmd(), a.vhdxCmd())
	wrapArgs(root)
	root.SetArgs(args)
	return a.report(root.ExecuteContext(ctx))
}

// version is the module's, as the build recorded it.
func version() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(unknown)"
}

// wrapArgs makes a wrong number of arguments a usage error, in every command.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usage(c, err)
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// group makes a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(subs...)
	return c
}

// Exit codes, the same as those of the holdfast command.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 4
	exitDenied      = 5
	exitBusy        = 6
	exitDamaged     = 7
	exitUnreachable = 8
	exitInterrupted = 130

	exitHelp = "Exit codes: 0 done, 1 failed, 2 wrong usage, 4 not found, 5 denied, 6 busy, 7 damage found, 8 unreachable, 130 interrupted."
)

func exitCode(err error) int {
	switch holdfast.KindOf(err) {
	case holdfast.NotExist:
		return exitNotFound
	case holdfast.Invalid:
		return exitUsage
	case holdfast.Permission:
		return exitDenied
	case holdfast.Busy:
		return exitBusy
	case holdfast.Corrupt:
		return exitDamaged
	case holdfast.Offline, holdfast.Transient:
		return exitUnreachable
	case holdfast.Cancelled:
		return exitInterrupted
	}
	return exitFailed
}

// usage makes a usage error that says where to read on.
func usage(c *cobra.Command, err error) error {
	var known *holdfast.Error
	if errors.As(err, &known) {
		return err
	}
	return holdfast.Errorf(holdfast.Invalid, "", "%w", err).Advise("'%s --help' shows how to use it", c.CommandPath())
}

// report prints an error and returns the exit code.
func (a *app) report(err error) int {
	if err == nil {
		return exitOK
	}
	if strings.HasPrefix(err.Error(), "unknown command") {
		err = holdfast.Errorf(holdfast.Invalid, "", "%w", err).Advise("'holdfast-agent --help' lists the commands")
	}
	hint := holdfast.HintOf(err)
	if a.json {
		b, e := json.Marshal(map[string]any{"error": map[string]string{"kind": holdfast.KindOf(err).String(), "message": err.Error(), "hint": hint}})
		if e == nil {
			fmt.Fprintf(a.errw, "%s\n", b)
		}
		return exitCode(err)
	}
	fmt.Fprintf(a.errw, "error: %s\n", err)
	if hint != "" {
		fmt.Fprintf(a.errw, "  %s\n", hint)
	}
	return exitCode(err)
}

// print shows a value: JSON for programs, or the columns that text writes for people.
func (a *app) print(v any, text func(w io.Writer)) error {
	var err error
	if a.json {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		err = enc.Encode(v)
	} else {
		tw := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		text(tw)
		err = tw.Flush()
	}
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, "print", "%w", err)
	}
	return nil
}

// clean keeps names that came from elsewhere from playing with the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}
