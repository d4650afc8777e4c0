# Runs PROGRAM with ARGUMENTS and fails unless it ends with STATUS ("abort": by signal) and prints what OUT and ERR ask
# for. Patterns are CMake's regular expressions.

execute_process(COMMAND "${PROGRAM}" ${ARGUMENTS} OUTPUT_VARIABLE out ERROR_VARIABLE err RESULT_VARIABLE status)
set(said "\n--- standard output\n${out}\n--- standard error\n${err}")
if(STATUS STREQUAL abort)
    # Words for a signal, as in "Subprocess aborted"; a number for an exit.
    if(status MATCHES "^[0-9]+$" AND NOT status EQUAL 134)
        message(FATAL_ERROR "ended with status ${status} instead of by abort${said}")
    endif()
elseif(NOT status STREQUAL STATUS)
    message(FATAL_ERROR "ended with status '${status}' instead of ${STATUS}${said}")
endif()
foreach(pattern IN LISTS OUT)
    if(NOT out MATCHES "${pattern}")
        message(FATAL_ERROR "standard output has no '${pattern}'${said}")
    endif()
endforeach()
foreach(pattern IN LISTS ERR)
    if(NOT err MATCHES "${pattern}")
        message(FATAL_ERROR "standard error has no '${pattern}'${said}")
    endif()
endforeach()
