# Written by packaging/src/main.rs from src/cli/args.rs: change it there.
_tinyloop() {
    local words current=${COMP_WORDS[COMP_CWORD]} option=${COMP_WORDS[COMP_CWORD-1]}
    # The = of --model=async is a word by itself.
    if [[ $current == = ]]; then
        current=
    elif [[ $option == = ]]; then
        option=${COMP_WORDS[COMP_CWORD-2]}
    fi
    case $option in
        -m|--model) words='async threaded sequential' ;;
        --framing) words='chunk line' ;;
        --when-full) words='wait reject' ;;
        --fault) words='delay=50ms..200ms rate=10kB slice=1..7/10ms close-after=5000 reset-after=5000 silent-after=5000 stall-after=5000 close-delay=2s refuse corrupt=1' ;;
        --log) words='text json' ;;
        -l|--listen|-p|--prefix|--max-connections|--idle-timeout|--stall-timeout|--lame-duck|--drain|--workers|--monitor|--seed) words= ;;
        *) words='-h --help -l --listen -p --prefix -m --model --framing --max-connections --when-full --idle-timeout --stall-timeout --lame-duck --drain --workers --proxy-protocol --monitor --fault --seed --log --timestamps -q --quiet --version' ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _tinyloop tinyloop
