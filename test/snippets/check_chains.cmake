# docs/composition.md shows what the programs of examples/chains print: NAME is one of them, PROGRAM its build. The block
# of text behind its link must be that, but for addresses and for frames outside the example, which differ from one
# system to the next, and for how a compiler names what it inlined.

include("${ROOT}/cmake/extract_snippets.cmake")

set(link "(../examples/chains/${NAME}.cpp)")
file(READ "${ROOT}/docs/composition.md" page)
string(FIND "${page}" "${link}" at)
if(at EQUAL -1)
    message(FATAL_ERROR "docs/composition.md has no link ${link}")
endif()
string(SUBSTRING "${page}" ${at} -1 page)
pmr_debug_next_snippet("${page}" "\n```text\n" "\n```")
set(shown "${code}")

execute_process(COMMAND "${PROGRAM}" OUTPUT_VARIABLE printed RESULT_VARIABLE status)
if(NOT status EQUAL 0)
    message(FATAL_ERROR "${NAME} ended with '${status}'\n${printed}")
endif()
foreach(text IN ITEMS shown printed)
    string(REGEX REPLACE "0x[0-9a-f]+" "0x" ${text} "\n${${text}}")
    string(REGEX REPLACE "\n    #[0-9]+ [^\n]*(examples/chains/[a-z_]+[.]cpp:[0-9]+)[^\n]*" "\n    \\1" ${text} "${${text}}")
    string(REGEX REPLACE "\n    (#|[(])[^\n]*" "" ${text} "${${text}}")
    string(REGEX REPLACE "\n\n+" "\n\n" ${text} "${${text}}")
    string(STRIP "${${text}}" ${text})
endforeach()
if(NOT shown STREQUAL printed)
    message(FATAL_ERROR "docs/composition.md shows\n${shown}\n--- but this is printed:\n${printed}")
endif()
