package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
	"github.com/holdfast-backup/holdfast/agent/lab"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) labCmd() *cobra.Command {
	return cli.Group("lab", "A host made of folders, to try backups and to test them",
		a.labCreateCmd(), a.labListCmd(), a.labNBDCmd(), a.labFaultCmd(), a.labCheckpointCmd(), a.labRevertCmd(), a.labResizeCmd(),
		a.labSwapCmd(), a.labCloneCmd(), a.labHostCmd(), a.labStateCmd("start", (*lab.Host).Start), a.labStateCmd("stop", (*lab.Host).Stop))
}

func (a *app) labCreateCmd() *cobra.Command {
	var o lab.CreateOptions
	var move bool
	var adapters []string
	c := &cobra.Command{
		Use:   "create LABDIR VM --disk FILE.vhdx ...",
		Short: "Make a VM from VHDX files, which are copied",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			o.Name = args[1]
			for _, x := range adapters {
				name, to, _ := strings.Cut(x, "=")
				o.Adapters = append(o.Adapters, holdfast.Adapter{Name: name, Switch: to})
			}
			if move {
				o.Take = lab.TakeMove
			}
			vm, err := h.NewVM(c.Context(), o)
			if err != nil {
				return err
			}
			return a.printVMs(vm, []hv.VM{vm})
		},
	}
	c.Flags().StringArrayVar(&o.Disks, "disk", nil, "VHDX file; repeat it for more disks")
	c.Flags().StringArrayVar(&adapters, "adapter", nil, "NAME=SWITCH: a network adapter; repeat it for more")
	c.Flags().StringVar(&o.Version, "vm-version", "", "configuration version of the VM (default: the lab's)")
	c.Flags().IntVar(&o.Generation, "generation", 2, "1 or 2")
	c.Flags().BoolVar(&o.Off, "off", false, "the VM is off; else it is said to run")
	c.Flags().BoolVar(&move, "move", false, "move the files instead of copying them")
	return c
}

func (a *app) labListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list LABDIR",
		Short: "List the VMs and their disks",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			vms, err := h.VMs(c.Context())
			if err != nil {
				return err
			}
			if vms == nil {
				vms = []hv.VM{}
			}
			return a.printVMs(vms, vms)
		},
	}
}

func (a *app) printVMs(v any, vms []hv.VM) error {
	return a.print(v, func(w io.Writer) {
		fmt.Fprintln(w, "VM\tID\tGEN\tSTATE\tDISK\tSIZE\tKIND\tAT")
		for _, vm := range vms {
			head := fmt.Sprintf("%s\t%s\t%d\t%s", cli.Clean(vm.Name), vm.ID, vm.Generation, vm.State)
			if len(vm.Disks)+len(vm.Skipped) == 0 {
				fmt.Fprintln(w, head)
			}
			for i, d := range vm.Disks {
				fmt.Fprintf(w, "%s\t%d %s\t%s\t%s\t%s %d:%d\n", head, i, cli.Clean(d.Name), cli.Size(d.Size), d.Subformat, d.Controller, d.ControllerNo, d.Slot)
			}
			for _, s := range vm.Skipped {
				fmt.Fprintf(w, "%s\t%s\tcannot be backed up: %s\n", head, cli.Clean(s.Name), cli.Clean(s.Reason))
			}
		}
	})
}

func (a *app) labHostCmd() *cobra.Command {
	var s lab.Settings
	c := &cobra.Command{
		Use:   "host LABDIR",
		Short: "Say what the host pretends to be: its switches, the versions it runs, what is free",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			now, err := h.Settings()
			if err != nil {
				return err
			}
			if c.Flags().Changed("switch") {
				now.Switches = s.Switches
			}
			if c.Flags().Changed("vm-version") {
				now.VMVersion = s.VMVersion
			}
			if c.Flags().Changed("free") {
				now.Free = s.Free
			}
			if c.Flags().NFlag() > 0 {
				if err := h.SetSettings(c.Context(), now); err != nil {
					return err
				}
			}
			return a.print(now, func(w io.Writer) {
				fmt.Fprintf(w, "switches\t%s\nVM versions\tup to %s\n", cli.Clean(strings.Join(now.Switches, ", ")), cli.Clean(now.VMVersion))
			})
		},
	}
	c.Flags().StringArrayVar(&s.Switches, "switch", nil, "virtual switch; repeat it for more")
	c.Flags().StringVar(&s.VMVersion, "vm-version", "", "highest configuration version of a VM")
	c.Flags().Int64Var(&s.Free, "free", 0, "bytes that are said to be free; 0: what the volume says")
	return c
}

func (a *app) labStateCmd(verb string, do func(*lab.Host, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " LABDIR VM",
		Short: map[string]string{"start": "Say that a VM runs", "stop": "Shut a VM down"}[verb],
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			return do(h, c.Context(), args[1])
		},
	}
}

func (a *app) labFaultCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "fault LABDIR VM KNOB[=VALUE]",
		Short: "Make the host fail in a way that real ones do",
		Long: "Make the host fail in a way that real ones do. A fault happens once unless VALUE is a larger count or \"always\"; \"off\" takes it away.\n" +
			"slow-merge needs a duration, for example slow-merge=3s.\n\nFaults: " + strings.Join(lab.Faults(), ", "),
		Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			name, value, _ := strings.Cut(args[2], "=")
			return h.SetFault(c.Context(), args[1], name, value)
		},
	}
}

func (a *app) labCheckpointCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint LABDIR VM",
		Short: "Take a checkpoint as a person would; revert goes back to it",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			id, err := h.UserCheckpoint(c.Context(), args[1])
			if err != nil {
				return err
			}
			return a.print(map[string]any{"id": id}, func(w io.Writer) { fmt.Fprintln(w, id) })
		},
	}
}

func (a *app) labRevertCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "revert LABDIR VM [CHECKPOINT]",
		Short: "Apply a checkpoint, the last one unless another is named",
		Args:  cobra.RangeArgs(2, 3),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			var id holdfast.ID
			if len(args) > 2 {
				if id, err = holdfast.ParseID(args[2]); err != nil {
					return err
				}
			}
			return h.Revert(c.Context(), args[1], id)
		},
	}
}

func (a *app) labResizeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "resize LABDIR VM DISKNO SIZE",
		Short: "Make a disk larger",
		Args:  cobra.ExactArgs(4),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			no, err := diskNo(args[2])
			if err != nil {
				return err
			}
			n, err := cli.ParseSize(args[3])
			if err != nil {
				return err
			}
			return h.Resize(c.Context(), args[1], no, n)
		},
	}
}

func (a *app) labSwapCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "swap LABDIR VM DISKNO FILE.vhdx",
		Short: "Put a copy of another disk in the place of a disk",
		Args:  cobra.ExactArgs(4),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			no, err := diskNo(args[2])
			if err != nil {
				return err
			}
			return h.Swap(c.Context(), args[1], no, args[3])
		},
	}
}

func (a *app) labCloneCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "clone LABDIR VM NEW",
		Short: "Make a copy of a VM, with ids of its own",
		Args:  cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			vm, err := h.Clone(c.Context(), args[1], args[2])
			if err != nil {
				return err
			}
			return a.printVMs(vm, []hv.VM{vm})
		},
	}
}

func diskNo(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, holdfast.Errorf(holdfast.Invalid, "", "%q is no number of a disk", s).Advise("disks are counted from 0")
	}
	return n, nil
}
