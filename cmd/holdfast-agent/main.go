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
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/cli"
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
		Long:          "Serve the virtual machines of a host to a Holdfast appliance.\n\n" + cli.ExitHelp,
		Version:       cli.Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetOut(a.out)
	root.SetErr(a.errw)
	root.SetFlagErrorFunc(cli.UsageError)
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON, for programs; errors too")
	root.AddCommand(a.enrollCmd(), a.runCmd(), a.labCmd(), a.vhdxCmd())
	cli.WrapArgs(root)
	root.SetArgs(args)
	return cli.Report(a.errw, root.Name(), a.json, root.ExecuteContext(ctx))
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
