# Stands in for rosidl_default_generators when message packages are built against the ROS wheels.
# The only middleware there is Fast DDS under rclpy, so the type support of C++ nodes would be compiled
# and never loaded. The introspection type support in C stays: Fast DDS describes a type with it, and
# without it no subscription can be made. A sourced ROS and colcon use the real package.
foreach(package ament_cmake_core rosidl_cmake rosidl_generator_type_description rosidl_generator_c
    rosidl_typesupport_introspection_c rosidl_typesupport_fastrtps_cpp
    rosidl_typesupport_fastrtps_c rosidl_typesupport_c
    rosidl_generator_py)
  find_package(${package} QUIET REQUIRED)
endforeach()
set(rosidl_default_generators_FOUND TRUE)

# The message packages that ours depend on register every generator once more, so the list is
# filtered at the last moment. CMake keeps the original macro under the name with an underscore.
macro(rosidl_generate_interfaces)
  list(FILTER AMENT_EXTENSIONS_rosidl_generate_idl_interfaces EXCLUDE
    REGEX "introspection_cpp|typesupport_cpp:")
  _rosidl_generate_interfaces(${ARGV})
endmacro()
