// Command holdfast is how people use a Holdfast appliance from a shell. It owns the words and forms of the command line, and speaks only
// to the daemon's API, over the unix socket in the data folder; the one exception is the demo, which runs a whole appliance of its own.
//
// It keeps nothing. A command that was killed leaves the work it asked for running in the daemon; an export that was killed leaves a file
// with the suffix .partial, never one that looks whole. It must not import pools or catalog.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
)

// defaultData is the daemon's folder where nothing else is said.
const defaultData = "/var/lib/holdfast"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: os.Stdin, out: os.Stdout, errw: os.Stderr}
	return a.main(ctx, os.Args[1:])
}

// An app is one invocation of the command line.
type app struct {
	in   io.Reader
	out  io.Writer
	errw io.Writer
	data string // --data
	json bool   // --json
}

func (a *app) main(ctx context.Context, args []string) int {
	a.json = slices.Contains(args, "--json") // also where the arguments cannot be read
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if ctx.Err() != nil && err != nil {
		err = &exitError{code: exitInterrupted, err: err}
	}
	return a.report(err)
}

func (a *app) root() *cobra.Command {
	data := os.Getenv("HOLDFAST_DATA")
	if data == "" {
		data = defaultData
	}
	root := &cobra.Command{
		Use:           "holdfast",
		Short:         "Back up virtual machines to a Holdfast appliance and bring them back",
		Long:          "Back up virtual machines to a Holdfast appliance and bring them back.\n\n" + exitHelp(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errw)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c, err) })
	root.PersistentFlags().StringVar(&a.data, "data", data, "folder of the daemon (or HOLDFAST_DATA)")
	root.PersistentFlags().BoolVar(&a.json, "json", a.json, "print JSON, for programs; errors too")
	root.AddCommand(a.statusCmd(), a.poolCmd(), a.hostCmd(), a.vmCmd(), a.backupCmd(), a.setCmd(), a.restoreCmd(), a.catalogCmd(),
		a.runCmd(), a.eventsCmd(), a.demoCmd())
	wrapArgs(root)
	return root
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

// Exit codes. This is the one table; scripts treat an unknown code as a failure.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartial     = 3
	exitNotFound    = 4
	exitDenied      = 5
	exitBusy        = 6
	exitDamaged     = 7
	exitUnreachable = 8
	exitProtected   = 9
	exitInterrupted = 130
)

var exitCodes = map[holdfast.Kind]int{
	holdfast.NotExist:   exitNotFound,
	holdfast.Invalid:    exitUsage,
	holdfast.Permission: exitDenied,
	holdfast.Busy:       exitBusy,
	holdfast.Corrupt:    exitDamaged,
	holdfast.Offline:    exitUnreachable,
	holdfast.Transient:  exitUnreachable,
	holdfast.Immutable:  exitProtected,
	holdfast.Cancelled:  exitInterrupted,
}

func exitHelp() string {
	return "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part, 4 not found, 5 denied, 6 busy, 7 damage found,\n" +
		"8 unreachable, 9 refused by a protection, 130 interrupted."
}

// An exitError fixes the exit code of an error.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

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
	var fixed *exitError
	code, known := exitCodes[holdfast.KindOf(err)]
	switch {
	case errors.As(err, &fixed):
		code = fixed.code
	case strings.HasPrefix(err.Error(), "unknown command"):
		code, err = exitUsage, holdfast.Errorf(holdfast.Invalid, "", "%w", err).Advise("'holdfast --help' lists the commands")
	case strings.HasPrefix(err.Error(), "required flag"):
		code, err = exitUsage, holdfast.Errorf(holdfast.Invalid, "", "%w", err).Advise("'holdfast COMMAND --help' shows how to use it")
	case !known:
		code = exitFailed
	}
	if a.json {
		b, e := json.Marshal(api.ErrorBody{Failure: api.FailureOf(err)})
		if e == nil {
			fmt.Fprintf(a.errw, "%s\n", b)
		}
		return code
	}
	fmt.Fprintf(a.errw, "error: %s\n", err)
	if hint := holdfast.HintOf(err); hint != "" {
		fmt.Fprintf(a.errw, "  %s\n", hint)
	}
	return code
}

// terminal tells whether w is a terminal that can move its cursor.
func terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}
