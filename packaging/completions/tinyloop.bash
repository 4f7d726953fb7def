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
        -l|--listen|-p|--prefix|--max-connections|--idle-timeout|--stall-timeout|--drain|--monitor) words= ;;
        *) words='-h --help -l --listen -p --prefix -m --model --framing --max-connections --when-full --idle-timeout --stall-timeout --drain --monitor -q --quiet --version' ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _tinyloop tinyloop
