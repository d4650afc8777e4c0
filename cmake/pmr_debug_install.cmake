# Install rules: library, headers, CMake package (find_package(pmr_debug)), pkg-config file.

include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/pmr_debug")
install(TARGETS pmr_debug EXPORT pmr_debug)
install(DIRECTORY include/pmr_debug DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")
install(EXPORT pmr_debug NAMESPACE pmr_debug:: FILE pmr_debug-targets.cmake DESTINATION "${package_dir}")
configure_package_config_file(cmake/pmr_debug-config.cmake.in pmr_debug-config.cmake
                              INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file(pmr_debug-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/pmr_debug-config.cmake" "${PROJECT_BINARY_DIR}/pmr_debug-config-version.cmake"
        DESTINATION "${package_dir}")

# Relative to the file, so that an installed tree may be moved.
cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_LIBDIR BASE_DIRECTORY "/prefix" OUTPUT_VARIABLE pc_dir)
cmake_path(APPEND pc_dir pkgconfig)
set(prefix "/prefix")
cmake_path(RELATIVE_PATH prefix BASE_DIRECTORY "${pc_dir}" OUTPUT_VARIABLE pc_prefix)
set(pc_flags "")
if(PMR_DEBUG_FRAME_POINTERS)
    set(pc_flags " -fno-omit-frame-pointer")
    if(PMR_DEBUG_HAVE_LEAF_FRAME_POINTER_FLAG)
        string(APPEND pc_flags " -mno-omit-leaf-frame-pointer")
    endif()
endif()
if(NOT PMR_DEBUG_SIBLING_CALLS)
    string(APPEND pc_flags " -fno-optimize-sibling-calls")
endif()
# A static library's own needs are its users' needs; a shared one brings its own.
set(pc_link "-pthread -ldl")
get_target_property(type pmr_debug TYPE)
if(type STREQUAL "STATIC_LIBRARY")
    set(pc_libs " ${pc_link}")
    set(pc_libs_private "")
else()
    set(pc_libs "")
    set(pc_libs_private "${pc_link}")
endif()
configure_file(cmake/pmr_debug.pc.in pmr_debug.pc @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/pmr_debug.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
