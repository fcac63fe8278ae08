// Command holdfast is how people use a Holdfast appliance from a shell. It owns the words and forms of the command line, and speaks only
// to the daemon's API, over the unix socket in the data folder; the one exception is the demo, which runs a whole appliance of its own.
//
// It keeps nothing. A command that was killed leaves the work it asked for running in the daemon; an export that was killed leaves a file
// with the suffix .partial, never one that looks whole. It must not import pools or catalog.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/holdfast-backup/holdfast/internal/cli"
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
	var plug *plugExit
	if errors.As(err, &plug) { // it has said everything
		return plug.code
	}
	if ctx.Err() != nil && err != nil {
		err = &cli.ExitError{Code: cli.Interrupted, Err: err}
	}
	return cli.Report(a.errw, root.Name(), a.json, err)
}

func (a *app) root() *cobra.Command {
	data := os.Getenv("HOLDFAST_DATA")
	if data == "" {
		data = defaultData
	}
	root := &cobra.Command{
		Use:           "holdfast",
		Short:         "Back up virtual machines to a Holdfast appliance and bring them back",
		Long:          "Back up virtual machines to a Holdfast appliance and bring them back.\n\n" + cli.ExitHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errw)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return cli.UsageError(c, err) })
	root.PersistentFlags().StringVar(&a.data, "data", data, "folder of the daemon (or HOLDFAST_DATA)")
	root.PersistentFlags().BoolVar(&a.json, "json", a.json, "print JSON, for programs; errors too")
	root.AddCommand(a.statusCmd(), a.poolCmd(), a.hostCmd(), a.networkCmd(), a.vmCmd(), a.backupCmd(), a.setCmd(), a.restoreCmd(), a.mountCmd(), a.catalogCmd(),
		a.jobCmd(), a.scheduleCmd(), a.retentionCmd(), a.runCmd(), a.eventsCmd(), a.notifyCmd(), a.configCmd(), a.checkCmd(), a.metricsCmd(), a.estimateCmd(), a.tapeCmd(), a.demoCmd())
	cli.WrapArgs(root)
	return root
}

// terminal tells whether w is a terminal that can move its cursor.
func terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}
