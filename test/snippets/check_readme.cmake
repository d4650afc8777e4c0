# The README's first block of C++ is examples/readme_example.cpp, word for word. If PROGRAM, its build, is there: the block
# that follows in the README is what it prints, but for addresses, for where the project lies, and for frames of the
# standard library, which differ from one to the next.

include("${ROOT}/cmake/extract_snippets.cmake")

file(READ "${ROOT}/README.md" readme)
file(READ "${ROOT}/examples/readme_example.cpp" example)
pmr_debug_next_snippet("${readme}" "\n```cpp\n" "\n```")
if(NOT code STREQUAL example)
    message(FATAL_ERROR "README.md shows something else than examples/readme_example.cpp:\n${code}")
endif()
if(NOT PROGRAM)
    return()
endif()

pmr_debug_next_snippet("${after}" "\n```text\n" "\n```")
set(shown "${code}")
execute_process(COMMAND "${PROGRAM}" ERROR_VARIABLE printed OUTPUT_QUIET RESULT_VARIABLE status)
foreach(text IN ITEMS shown printed)
    string(REGEX REPLACE "0x[0-9a-f]+" "0x" ${text} "${${text}}")
    string(REGEX REPLACE "\n    #[^\n]*(/c[+][+]/|__libc_start|_start )[^\n]*" "" ${text} "${${text}}")
    string(REGEX REPLACE "\n    #[0-9]+" "\n    #" ${text} "${${text}}")
    string(REGEX REPLACE "  [^ \n]*/(examples/readme_example)" "  \\1" ${text} "${${text}}")
    string(STRIP "${${text}}" ${text})
endforeach()
if(NOT shown STREQUAL printed)
    message(FATAL_ERROR "README.md shows\n${shown}\n--- but this is printed:\n${printed}")
endif()
