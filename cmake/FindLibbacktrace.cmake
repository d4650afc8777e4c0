# Finds libbacktrace as it ships with GCC, and the demangler of GCC's libsupc++ that needs no heap.
#
# Sets, as cache entries where they are the result of a search:
#   Libbacktrace_FOUND            header and archive were found
#   Libbacktrace_LIBRARY          libbacktrace.a
#   Libbacktrace_HEADER_DIR       the folder of backtrace.h and backtrace-supported.h, and of GCC's own stddef.h and the
#                                 like: not to be handed to another compiler as it is
#   Libbacktrace_DEMANGLE_LIBRARY libsupc++.a, if its cp-demangle.o defines __gcclibcxx_demangle_callback; else false
#
# GCC keeps both in its private folder. The compiler in use is asked first if it is GCC, then any g++ in the path (that
# is how clang builds get there), then the places where distributions put that folder.

set(folders "")
set(compilers "")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND compilers "${CMAKE_CXX_COMPILER}")
endif()
foreach(name IN ITEMS g++ g++-16 g++-15 g++-14 g++-13 g++-12)
    find_program(Libbacktrace_${name} ${name} NO_CACHE)
    if(Libbacktrace_${name})
        list(APPEND compilers "${Libbacktrace_${name}}")
    endif()
endforeach()
# Not for another machine: whatever g++ is in the path makes code for this one.
if(CMAKE_CROSSCOMPILING AND NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(compilers "")
endif()
foreach(compiler IN LISTS compilers)
    execute_process(COMMAND "${compiler}" -print-libgcc-file-name OUTPUT_VARIABLE libgcc
                    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed)
        cmake_path(GET libgcc PARENT_PATH folder)
        list(APPEND folders "${folder}")
    endif()
endforeach()
if(NOT CMAKE_CROSSCOMPILING)
    file(GLOB installed LIST_DIRECTORIES ON /usr/lib/gcc/${CMAKE_HOST_SYSTEM_PROCESSOR}-*/*
         /usr/lib64/gcc/${CMAKE_HOST_SYSTEM_PROCESSOR}-*/*)
    list(SORT installed COMPARE NATURAL ORDER DESCENDING)
    list(APPEND folders ${installed})
endif()
list(REMOVE_DUPLICATES folders)

list(TRANSFORM folders APPEND /include OUTPUT_VARIABLE header_folders)
find_library(Libbacktrace_LIBRARY NAMES libbacktrace.a HINTS ${folders})
find_path(Libbacktrace_HEADER_DIR NAMES backtrace-supported.h HINTS ${header_folders})

if(NOT DEFINED Libbacktrace_DEMANGLE_LIBRARY)
    set(found FALSE)
    foreach(folder IN LISTS folders)
        set(candidate "${folder}/libsupc++.a")
        if(EXISTS "${candidate}" AND CMAKE_NM)
            execute_process(COMMAND "${CMAKE_NM}" --defined-only "${candidate}" OUTPUT_VARIABLE symbols ERROR_QUIET)
            if(symbols MATCHES "\ncp-demangle.o:\n[^:]* T __gcclibcxx_demangle_callback\n")
                set(found "${candidate}")
                break()
            endif()
        endif()
    endforeach()
    set(Libbacktrace_DEMANGLE_LIBRARY "${found}" CACHE FILEPATH "Archive with __gcclibcxx_demangle_callback")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Libbacktrace REQUIRED_VARS Libbacktrace_LIBRARY Libbacktrace_HEADER_DIR)
mark_as_advanced(Libbacktrace_LIBRARY Libbacktrace_HEADER_DIR Libbacktrace_DEMANGLE_LIBRARY)
