# What this project needs from elsewhere: installed packages, else, with PMR_DEBUG_FETCH_DEPS, pinned archives.

include(FetchContent)

# Effects: find_package(\p package), else fetch \p url and check \p sha256. \p target exists afterwards, or it is an error.
function(pmr_debug_require package target url sha256)
    if(NOT TARGET ${target})
        find_package(${package} QUIET GLOBAL)
    endif()
    if(TARGET ${target})
        return()
    endif()
    if(NOT PMR_DEBUG_FETCH_DEPS)
        message(FATAL_ERROR "pmr_debug needs ${package}, which is not installed. "
                            "Install it (./cmake/dev does on Debian and Ubuntu) or set PMR_DEBUG_FETCH_DEPS=ON.")
    endif()
    message(STATUS "Fetching ${package} from ${url}")
    FetchContent_Declare(${package} SYSTEM URL "${url}" URL_HASH SHA256=${sha256} DOWNLOAD_EXTRACT_TIMESTAMP OFF)
    FetchContent_MakeAvailable(${package})
endfunction()

find_package(Threads REQUIRED)

set(GSL_INSTALL ${PMR_DEBUG_INSTALL}) # a public dependency: whoever gets this library installed needs it as well
set(CMAKE_POLICY_DEFAULT_CMP0077 NEW) # the variables here are options of the projects fetched below
pmr_debug_require(
    Microsoft.GSL Microsoft.GSL::GSL https://github.com/microsoft/GSL/archive/refs/tags/v4.0.0.tar.gz
    f0e32cb10654fea91ad56bde89170d78cfbf4363ee0b01d8f097de2ba49f6ce9)
pmr_debug_require(
    range-v3 range-v3::range-v3 https://github.com/ericniebler/range-v3/archive/refs/tags/0.12.0.tar.gz
    015adb2300a98edfceaf0725beec3337f542af4915cec4d0b89fa0886f4ba9cb)
if(PMR_DEBUG_BUILD_TESTS)
    set(INSTALL_GTEST OFF)
    set(BUILD_GMOCK OFF)
    if(PMR_DEBUG_GTEST_SOURCE)
        # An installed GoogleTest is of the standard library that the system's compiler has.
        add_subdirectory("${PMR_DEBUG_GTEST_SOURCE}" "${PROJECT_BINARY_DIR}/googletest" EXCLUDE_FROM_ALL SYSTEM)
    endif()
    pmr_debug_require(
        GTest GTest::gtest_main https://github.com/google/googletest/archive/refs/tags/release-1.12.1.tar.gz
        81964fe578e9bd7c94dfdb09c8e4d6e6759e19967e397dbea48d1c10e45d0df2)
    # Reads what reports as JSON say.
    pmr_debug_require(
        nlohmann_json nlohmann_json::nlohmann_json https://github.com/nlohmann/json/archive/refs/tags/v3.11.2.tar.gz
        d69f9deb6a75e2580465c6c4c5111b89c4dc2fa94e3a85fcd2ffcd9a143d9273)
endif()
if(PMR_DEBUG_BUILD_BENCH)
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    pmr_debug_require(
        benchmark benchmark::benchmark https://github.com/google/benchmark/archive/refs/tags/v1.7.1.tar.gz
        6430e4092653380d9dc4ccb45a1e2dc9259d581f4866dc0759713126056bc1d7)
endif()

# Effects: \p target gets the symboliser's outside parts, with PMR_DEBUG_HAVE_LIBBACKTRACE and
#   PMR_DEBUG_HAVE_DEMANGLE_CALLBACK defined as 0 or 1 in its own files.
#
# The parts become members of the library itself, under names of their own. So an installed library is complete: its
# users need not have GCC's private folder, no path into that folder stands in the installed package, and nothing
# clashes with a libbacktrace of theirs or with a statically linked libstdc++. (Linking libsupc++.a as such would also
# take operator new and the exception machinery out of it, beside the ones in the shared standard library.)
function(pmr_debug_add_symboliser_objects target)
    find_package(Libbacktrace)
    # Members keep their dates: configuring again must not link everything again.
    set(work "${PROJECT_BINARY_DIR}/symboliser_objects")
    file(REMOVE_RECURSE "${work}")
    file(MAKE_DIRECTORY "${work}")
    set(run COMMAND_ERROR_IS_FATAL ANY WORKING_DIRECTORY "${work}")

    set(have_backtrace 0)
    set(have_demangle 0)
    if(Libbacktrace_FOUND AND CMAKE_OBJCOPY AND CMAKE_NM)
        set(have_backtrace 1)
        execute_process(COMMAND "${CMAKE_AR}" xo "${Libbacktrace_LIBRARY}" ${run})
    endif()
    if(Libbacktrace_DEMANGLE_LIBRARY AND CMAKE_OBJCOPY AND CMAKE_NM)
        set(have_demangle 1)
        execute_process(COMMAND "${CMAKE_AR}" xo "${Libbacktrace_DEMANGLE_LIBRARY}" cp-demangle.o ${run})
        # It also defines __cxa_demangle, which must stay the standard library's.
        execute_process(COMMAND "${CMAKE_OBJCOPY}" --preserve-dates
                                --keep-global-symbol=__gcclibcxx_demangle_callback cp-demangle.o ${run})
    endif()
    target_compile_definitions(${target} PRIVATE PMR_DEBUG_HAVE_LIBBACKTRACE=${have_backtrace}
                                                 PMR_DEBUG_HAVE_DEMANGLE_CALLBACK=${have_demangle})
    file(GLOB objects "${work}/*.o")
    if(NOT objects)
        return()
    endif()

    # Every name x becomes pmr_debug_x, for files that include <backtrace.h> and for the one function without a header.
    execute_process(COMMAND "${CMAKE_NM}" -g -P --defined-only ${objects} OUTPUT_VARIABLE symbols ERROR_QUIET
                    ${run})
    string(REGEX MATCHALL "\n[A-Za-z_][A-Za-z_0-9]* [A-Z] " symbols "\n${symbols}")
    set(renames "")
    set(defines "")
    foreach(symbol IN LISTS symbols)
        string(REGEX REPLACE "^\n([^ ]*).*" "\\1" symbol "${symbol}")
        string(APPEND renames "${symbol} pmr_debug_${symbol}\n")
        if(NOT symbol STREQUAL "__gcclibcxx_demangle_callback")
            string(APPEND defines "#define ${symbol} pmr_debug_${symbol}\n")
        endif()
    endforeach()
    # One name of libc's, too: what it shows libbacktrace is for src/stack/symboliser.cpp to decide.
    string(APPEND renames "dl_iterate_phdr pmr_debug_dl_iterate_phdr\n")
    file(WRITE "${work}/renames" "${renames}")
    foreach(object IN LISTS objects)
        execute_process(COMMAND "${CMAKE_OBJCOPY}" --preserve-dates --redefine-syms=renames "${object}" ${run})
    endforeach()
    if(have_backtrace)
        # The others call src/stack/symboliser.cpp's in its place, which calls this one.
        execute_process(COMMAND "${CMAKE_OBJCOPY}" --preserve-dates
                                --redefine-sym=pmr_debug_backtrace_qsort=pmr_debug_libbacktrace_qsort sort.o ${run})
    endif()
    if(have_demangle)
        target_compile_definitions(
            ${target} PRIVATE __gcclibcxx_demangle_callback=pmr_debug___gcclibcxx_demangle_callback)
    endif()
    if(have_backtrace)
        # In a folder of their own: beside them GCC keeps its stddef.h and the like, which clang must not see.
        set(include "${PROJECT_BINARY_DIR}/symboliser_include")
        set(original "${Libbacktrace_HEADER_DIR}/backtrace.h")
        configure_file("${original}" "${include}/libbacktrace/backtrace.h" COPYONLY)
        configure_file("${Libbacktrace_HEADER_DIR}/backtrace-supported.h" "${include}/backtrace-supported.h" COPYONLY)
        file(CONFIGURE OUTPUT "${include}/backtrace.h" @ONLY
             CONTENT "#pragma once\n${defines}#include \"libbacktrace/backtrace.h\"\n")
        target_include_directories(${target} SYSTEM PRIVATE "${include}")
    endif()

    get_target_property(type ${target} TYPE)
    if(type STREQUAL "SHARED_LIBRARY")
        # From an archive, for --exclude-libs: the shared library does not offer these names to the program.
        set(archive "${PROJECT_BINARY_DIR}/libsymboliser_objects.a")
        execute_process(COMMAND "${CMAKE_AR}" qcs new.a ${objects} ${run})
        file(COPY_FILE "${work}/new.a" "${archive}" ONLY_IF_DIFFERENT)
        target_link_libraries(${target} PRIVATE "$<BUILD_INTERFACE:${archive}>")
        target_link_options(${target} PRIVATE LINKER:--exclude-libs,libsymboliser_objects.a)
    else()
        target_sources(${target} PRIVATE ${objects})
        set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON)
    endif()
endfunction()
